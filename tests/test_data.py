"Data: sources, decoding, the cache, splits and everything that can be wrong with what people bring."
import io, json, os, shutil, subprocess, sys, tarfile, threading, time, zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

import imgcls.data as D
from imgcls.data import check_dataset, data_fingerprint, load_data, prepare_data, split_data
from imgcls.params import BadInput, make_params

rng = np.random.RandomState(0)
P = lambda **kw: make_params(kw)

@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('IMGCLS_CACHE', str(tmp_path/'cache'))
    monkeypatch.delenv('IMGCLS_DATA', raising=False)
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'fastai'))
    return tmp_path/'cache'

def pic(size=(8, 8)): return Image.fromarray(rng.randint(0, 256, (size[1], size[0], 3), np.uint8))
def put(root, path, im=None, **kw):
    f = root/path; f.parent.mkdir(parents=True, exist_ok=True); (im or pic()).save(f, **kw); return f
def pets(root, n=4, classes=('cat', 'dog'), splits=('train', 'test')):
    for s in splits:
        for c in classes:
            for k in range(n): put(root, f'{s}/{c}/{k}.png' if s else f'{c}/{k}.png')
    return root
def leftovers(cache): return [f for f in cache.rglob('*') if '.tmp' in f.name or f.name.endswith('.part')]

# ---- sources

def test_folder_archive_and_zip_of_the_same_files_are_the_same_data(tmp_path):
    root = pets(tmp_path/'pets')
    with tarfile.open(tmp_path/'pets.tgz', 'w:gz') as t: # other order on purpose
        for f in sorted(root.rglob('*.png'), reverse=True): t.add(f, f'pets/{f.relative_to(root)}')
    with zipfile.ZipFile(tmp_path/'pets.zip', 'w') as z:
        for f in root.rglob('*.png'): z.write(f, f'wrap/pets/{f.relative_to(root)}')
    a, b, c = (load_data(str(tmp_path/n)) for n in ('pets', 'pets.tgz', 'pets.zip'))
    assert a.fingerprint == b.fingerprint == c.fingerprint and a.ids == b.ids == c.ids
    assert (a.images == b.images).all() and a.ids == sorted(a.ids) and a.classes == ['cat', 'dog']
    p = P(dataset='x', valid_pct=.25)
    assert split_data(a, p).fingerprint == split_data(b, p).fingerprint

def test_data_folder_then_downloads_and_one_line_when_offline(tmp_path, monkeypatch):
    pets(tmp_path/'here'/'cifar10'); monkeypatch.setenv('IMGCLS_DATA', str(tmp_path/'here'))
    assert len(load_data('cifar10')) == 16
    import fastdownload
    def offline(self, url, *a, **k): raise OSError('no route')
    monkeypatch.setattr(fastdownload.FastDownload, 'download', offline)
    with pytest.raises(BadInput, match=r"dataset: imagenette is not here and cannot be downloaded \(OSError: no route\); put imagenette.tgz or the folder imagenette/ into .*here"): load_data('imagenette')
    with pytest.raises(BadInput, match='tinyimagenet32-a is not here and has no download address'): load_data('tinyimagenet32-a')
    pets(tmp_path/'fastai'/'data'/'imagenette2-320')
    assert len(load_data('imagenette')) == 16

def test_class_is_the_innermost_folder_for_cifar100_only(tmp_path, monkeypatch):
    for s in ('train', 'test'):
        for k in range(3): put(tmp_path/'cifar100', f'{s}/fish/shark/{k}.png'); put(tmp_path/'cifar100', f'{s}/fish/trout/{k}.png')
    monkeypatch.setenv('IMGCLS_DATA', str(tmp_path))
    assert load_data('cifar100').classes == ['shark', 'trout']

def test_cub_and_flowers_lists(tmp_path, monkeypatch):
    from scipy.io import savemat
    root, lines, marks = tmp_path/'CUB_200_2011', [], []
    for i in range(8):
        f = f'00{i%2+1}.Bird_{i%2}/x{i}.jpg'; put(root, f'images/{f}'); lines.append(f'{i+1} {f}'); marks.append(f'{i+1} {int(i < 6)}')
    (root/'images.txt').write_text('\n'.join(lines)); (root/'train_test_split.txt').write_text('\n'.join(marks))
    fl = tmp_path/'flowers-102'
    for i in range(1, 9): put(fl, f'jpg/image_{i:05d}.jpg')
    savemat(fl/'imagelabels.mat', dict(labels=np.array([[1, 2]*4]))); savemat(fl/'setid.mat', dict(trnid=np.array([[1, 2, 3, 4]]), valid=np.array([[5, 6]]), tstid=np.array([[7, 8]])))
    monkeypatch.setenv('IMGCLS_DATA', str(tmp_path))
    d = load_data('cub200'); assert d.classes == ['Bird_0', 'Bird_1'] and (d.given == 'train').sum() == 6
    d = load_data('flowers102'); assert d.classes == ['001', '002'] and sorted(d.given) == ['test']*2 + ['train']*4 + ['valid']*2

def test_csv_with_labels(tmp_path):
    for k in range(12): put(tmp_path/'p', f'pics/{k:02d}.png')
    (tmp_path/'p'/'labels.csv').write_text('image,label\n' + ''.join(f'pics/{k:02d}.png,{"ab"[k%2]}\n' for k in range(12)))
    a, b = load_data(str(tmp_path/'p')), load_data(str(tmp_path/'p'/'labels.csv'))
    assert a.classes == ['a', 'b'] and a.fingerprint == b.fingerprint and a.labels.tolist() == [0, 1]*6

def test_classes_can_be_left_out(tmp_path):
    pets(tmp_path/'p', classes=('cat', 'dog', 'fox'))
    assert load_data(f'{tmp_path}/p:without=fox').classes == ['cat', 'dog']
    assert load_data(f'{tmp_path}/p:only=fox+dog').classes == ['dog', 'fox']
    with pytest.raises(BadInput, match=r"no class 'foxx' \(did you mean 'fox'\?\)"): load_data(f'{tmp_path}/p:without=foxx')

# ---- decoding

def test_every_kind_of_file_becomes_rgb(tmp_path):
    g = np.arange(64, dtype=np.uint8).reshape(8, 8)*4
    kinds = {'L.png': Image.fromarray(g), 'P.png': pic().quantize(16), 'RGBA.png': Image.new('RGBA', (8, 8), (10, 20, 30, 0)), 'CMYK.jpg': pic().convert('CMYK'),
             'I16.png': Image.fromarray(g.astype(np.uint16)*257), '1.png': pic().convert('1'), 'LA.png': Image.new('LA', (8, 8), (9, 255)), 'F.tiff': Image.fromarray(g.astype(np.float32)/255)}
    for c in 'ab':
        for n, im in kinds.items(): put(tmp_path/'k', f'{c}/{n}', im)
    first = pic()
    for c in 'ab': put(tmp_path/'k', f'{c}/anim.gif', first, save_all=True, append_images=[pic()])
    d = load_data(str(tmp_path/'k')); at = {i: d.images[k] for k, i in enumerate(d.ids)}
    assert d.images.shape[1:] == (8, 8, 3) and set(d.modes) >= {'L', 'P', 'RGBA', 'CMYK', '1', 'LA', 'F'}
    assert (at['a/L.png'] == g[..., None]).all() and (at['a/I16.png'] == g[..., None]).all() and (at['a/RGBA.png'] == 255).all() and (at['a/LA.png'] == 9).all()
    assert np.abs(at['a/F.tiff'].astype(int) - g[..., None]).max() <= 1
    assert np.abs(at['a/anim.gif'].astype(int) - np.asarray(first)).mean() < 40 # the first frame, as a palette shows it

def test_exif_rotation_is_applied(tmp_path):
    a = np.zeros((8, 8, 3), np.uint8); a[:4] = 255
    exif = Image.Exif(); exif[274] = 6 # turn a quarter clockwise
    for c in 'ab':
        for k in range(3): put(tmp_path/'k', f'{c}/{k}.png', Image.fromarray(a), exif=exif)
    x = load_data(str(tmp_path/'k')).images[0]
    assert (x[:, 4:] == 255).all() and (x[:, :4] == 0).all()

def test_mixed_sizes_by_the_stated_rule(tmp_path):
    im = Image.fromarray(np.repeat(np.repeat(np.array([[[255, 0, 0], [0, 255, 0], [0, 255, 0], [0, 0, 255]]], np.uint8), 20, 0), 10, 1)) # 40 x 20, coloured columns
    for c in 'ab':
        put(tmp_path/'k', f'{c}/wide.png', im)
        for k in range(4): put(tmp_path/'k', f'{c}/{k}.png', pic((20, 20)))
    d = load_data(str(tmp_path/'k'))
    assert d.images.shape[1:] == (20, 20, 3)                      # the median shorter side
    x = d.images[d.ids.index('a/wide.png')]
    assert (x[:, :, 1] == 255).all() and not x[:, :, [0, 2]].any() # the centre square
    assert d.sizes[d.ids.index('a/wide.png')].tolist() == [40, 20]

def test_many_files_go_through_worker_processes(tmp_path):
    for c in 'ab':
        for k in range(20): put(tmp_path/'k', f'{c}/{k:02d}.png', pic((9, 8)))
    entries = sorted(D.find_source(str(tmp_path/'k')).entries(tmp_path))
    (tmp_path/'k/a/03.png').write_bytes(b'broken')
    with D._pool(2) as run: chunks = list(run((entries[s:s+6], 8) for s in range(0, 40, 6)))
    here = [D._decode(entries[s:s+6], 8) for s in range(0, 40, 6)]
    assert all((a.pixels == b.pixels).all() and a.digests == b.digests and a.errors == b.errors for a, b in zip(chunks, here)) and chunks[0].errors[0][0] == 3

# ---- the cache

def test_cache_cut_short_is_noticed_and_rebuilt(tmp_path, cache):
    pets(tmp_path/'p'); d = load_data(str(tmp_path/'p')); whole = d.images.copy()
    for name in ('images.u8', 'table.npz', 'ids.json', 'meta.json'):
        f = d.path/name; f.write_bytes(f.read_bytes()[:-7])
        again = load_data(str(tmp_path/'p'))
        assert (again.images == whole).all() and again.fingerprint == d.fingerprint and again.ids == d.ids

def test_failed_write_leaves_nothing(tmp_path, cache, monkeypatch):
    pets(tmp_path/'p')
    real = D._Writer.add
    def full(self, *a, **k): real(self, *a, **k); raise OSError(28, 'No space left on device')
    monkeypatch.setattr(D._Writer, 'add', full)
    with pytest.raises(BadInput, match='cannot write its decoded images below .*No space left on device.*IMGCLS_CACHE'): load_data(str(tmp_path/'p'))
    assert not leftovers(cache) and not list((cache/'data').iterdir())
    monkeypatch.undo(); os.environ['IMGCLS_CACHE'] = str(cache)
    assert len(load_data(str(tmp_path/'p'))) == 16

def test_killed_build_is_cleaned_and_touched_files_reuse_the_content(tmp_path, cache):
    root = pets(tmp_path/'p'); a = load_data(str(root))
    f = root/'train/cat/0.png'; os.utime(f, (1, 1))
    (cache/'data'/'stale.tmp').mkdir()
    b = load_data(str(root)); assert b.path == a.path             # other signature, same content
    put(root, 'train/cat/0.png'); c = load_data(str(root)); assert c.path != a.path and c.fingerprint != a.fingerprint

def test_sources_of_the_same_content_wait_for_each_other(tmp_path, cache, monkeypatch):
    "The first finds no folder; before it has put its own there the second does, and the first takes that for a damaged one and away while the second opens it."
    a = pets(tmp_path/'a'); shutil.copytree(a, tmp_path/'b')
    real_open, real_rmtree, there, gone, got, calls = D._open, shutil.rmtree, threading.Event(), threading.Event(), [], []
    def load_second():
        try: got.append(load_data(str(tmp_path/'b')))
        except Exception as e: got.append(e)
    second = threading.Thread(target=load_second)
    def slow_open(folder, name):
        mine = threading.current_thread() is second
        calls.append(mine)
        if mine and calls.count(True) == 2: there.set(); gone.wait(2)
        found = real_open(folder, name)
        if not mine and calls.count(False) == 1: assert found is None; second.start(); there.wait(1)
        return found
    def slow_rmtree(path, **kw):
        real_rmtree(path, **kw)
        if Path(path).suffix != '.tmp' and there.is_set(): gone.set(); time.sleep(.5)
    monkeypatch.setattr(D, '_open', slow_open); monkeypatch.setattr(D.shutil, 'rmtree', slow_rmtree)
    first = load_data(str(a)); second.join(60)
    assert not isinstance(got[0], Exception), got
    assert got[0].path == first.path and (first.images == got[0].images).all()

def test_several_processes_at_once(tmp_path, cache):
    root = pets(tmp_path/'p', n=30)
    code = f"from imgcls.data import load_data; d = load_data({str(root)!r}); print(d.fingerprint, int(d.images.sum()))"
    procs = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    outs = [p.communicate(timeout=60) for p in procs]
    assert all(p.returncode == 0 for p in procs), outs
    assert len({o for o, _ in outs}) == 1 and not leftovers(cache) and len(list((cache/'data').iterdir())) == 1

def test_command_line_path_stays_light():
    code = "import sys, imgcls.data; print([m for m in ('torch', 'fastai', 'pandas', 'sklearn', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'

# ---- splits

def fake(labels, given=None, digests=None, ids=None):
    n = len(labels); labels = np.asarray(labels, np.int64)
    ids = ids or [f'{l}/{k:05d}' for k, l in enumerate(labels)]
    keys = np.array([int.from_bytes(__import__('hashlib').blake2b(i.encode(), digest_size=8).digest(), 'little') for i in ids], np.uint64)
    dig = np.asarray(digests if digests is not None else range(n), np.uint64)
    c = labels.max()+1
    return D.ImageData('fake', [f'c{k}' for k in range(c)], np.zeros((n, 1, 1, 3), np.uint8), labels, np.zeros(n, np.int8) if given is None else np.asarray(given, np.int8), keys,
                       np.stack([dig, dig], 1), np.ones((n, 2), np.int32), np.full(n, 'RGB'), [], 'fp', Path('.'))

counts = st.lists(st.integers(8, 40), min_size=2, max_size=5)

@settings(max_examples=40, deadline=None)
@given(counts, st.floats(.05, .6), st.integers(0, 99), st.sampled_from(['none', 'train+test', 'train+valid']), st.randoms())
def test_splits_are_disjoint_by_content_stratified_and_stable(ns, pct, seed, kind, r):
    labels = [c for c, n in enumerate(ns) for _ in range(n)]
    held = {'none': 0, 'train+test': 3, 'train+valid': 2}[kind]
    given_ = [0]*len(labels) if not held else [held if k % 4 == 0 else 1 for k in range(len(labels))]
    digests = list(range(len(labels)))
    for _ in range(3): # copies, some across given splits
        i, j = r.randrange(len(labels)), r.randrange(len(labels))
        if labels[i] == labels[j]: digests[i] = digests[j]
    d, p = fake(labels, given_, digests), P(valid_pct=pct, split_seed=seed)
    s = split_data(d, p)
    dig = np.array(digests)
    for a, b in ((s.train, s.valid), (s.train, s.test), (s.valid, s.test)): assert not set(dig[a]) & set(dig[b])
    assert len(s.train)+len(s.valid)+len(s.test) == len(labels) - sum(s.dropped.values())
    pool = np.setdiff1d(np.arange(len(labels)), s.test)
    for c in range(len(ns)):
        total, v = (d.labels[pool] == c).sum(), (d.labels[s.valid] == c).sum()
        assert abs(v - total*pct) <= 5 and v >= 1 and (d.labels[s.train] == c).any()
    again = split_data(d, p); assert again.fingerprint == s.fingerprint
    # the order of files does not matter: the same ids land in the same split
    perm = np.array(r.sample(range(len(labels)), len(labels)))
    ids = [f'{l}/{k:05d}' for k, l in enumerate(labels)]
    t = split_data(fake([labels[k] for k in perm], [given_[k] for k in perm], [digests[k] for k in perm], [ids[k] for k in perm]), p)
    for a, b in zip(s, t): assert {ids[k] for k in a} == {ids[perm[k]] for k in b}

@settings(max_examples=30, deadline=None)
@given(st.integers(10, 30), st.integers(0, 50))
def test_exact_counts_without_copies(n, seed):
    d = fake([c for c in range(3) for _ in range(10*n)], [3 if k % 10 == 0 else 1 for k in range(30*n)])
    s = split_data(d, P(valid_pct=.1, split_seed=seed))
    assert np.bincount(d.labels[s.valid]).tolist() == [int(9*n*.1+.5)]*3 and len(s.test) == 3*n
    t = split_data(d, P(valid_pct=.8, valid_from='test', split_seed=seed)) # study C
    assert np.bincount(d.labels[t.valid]).tolist() == [int(n*.8+.5)]*3 and len(t.train) == 27*n and len(t.valid)+len(t.test) == 3*n
    limited = split_data(d, P(valid_pct=.1, split_seed=seed, train_limit=7))
    assert np.bincount(d.labels[limited.train]).tolist() == [7]*3 and (limited.valid == s.valid).all() and set(limited.train) <= set(s.train)

def test_copies_of_test_pictures_leave_train_and_are_counted():
    d = fake([0]*10 + [1]*10, ([1]*8 + [3]*2)*2, [0, 1, 2, 3, 4, 5, 6, 7, 0, 9, *range(10, 20)])
    s = split_data(d, P(valid_pct=.25))
    assert s.dropped == {'train': 1}
    assert 0 not in np.r_[s.train, s.valid] and any('left out' in n for n in s.notes)

def test_copies_never_take_a_whole_class():
    for seed in range(8):
        d = fake([0]*4 + [1]*6, [1]*10, [0, 1, 1, 1, *range(10, 16)]); d.given_codes[9] = 3
        s = split_data(d, P(valid_pct=.6, split_seed=seed)); assert {0, 1} == set(d.labels[s.train]) == set(d.labels[s.valid])

def test_the_split_is_the_same_on_every_machine():
    d = fake([c for c in range(3) for _ in range(20)])
    assert [a[:6].tolist() for a in split_data(d, P(split_seed=42))] == EXPECTED

EXPECTED = [[0, 1, 2, 3, 4, 6], [7, 15, 24, 33, 43, 49], [5, 8, 10, 14, 22, 26]]

def test_a_new_file_moves_nobody_else():
    labels = [c for c in range(2) for _ in range(50)]; ids = [f'{l}/{k:05d}' for k, l in enumerate(labels)]
    a = split_data(fake(labels, [3 if k % 5 == 0 else 1 for k in range(100)]), P())
    b = split_data(fake(labels+[0], [3 if k % 5 == 0 else 1 for k in range(100)]+[1], ids=ids+['0/new']), P())
    assert len(set(a.valid) ^ set(b.valid)) <= 2

def _no_decoding(monkeypatch):
    def stop(*a, **kw): raise AssertionError('an image was decoded again')
    monkeypatch.setattr('PIL.Image.open', stop)

def test_fingerprint_knows_the_split_and_decodes_nothing(tmp_path, monkeypatch):
    pets(tmp_path/'p', n=10); p = P(dataset=str(tmp_path/'p'), valid_pct=.3); f = data_fingerprint(p)
    assert f == data_fingerprint(p) != data_fingerprint(p.but(split_seed=1)) and f != data_fingerprint(p.but(train_limit=3)) and f == data_fingerprint(p.but(lr=1.))
    _no_decoding(monkeypatch); assert data_fingerprint(p) == f

# ---- bad input

@pytest.mark.parametrize('files, message', [
    (['cat/1.png', 'cat/2.png', 'cat/3.png'], "only one class, 'cat'"),
    (['readme.txt'], 'no images'),
    (['Cat/1.png', 'Cat/2.png', 'Cat/3.png', 'cat/1.png', 'cat/2.png', 'cat/3.png'], "classes 'Cat' and 'cat' differ only by case"),
    (['a/1.png', 'a/2.png', 'a/3.png', 'b/1.png', 'b/2.png'], "class 'b' has 2 images for 3 splits"),
    (['train/a/1.png', 'train/a/2.png', 'train/b/1.png', 'train/b/2.png', 'test/c/1.png'], "class 'c' has no image in train"),
    (['train/a/1.png', 'train/a/2.png', 'train/b/1.png', 'train/b/2.png', 'train/3.png'], "'train/3.png' lies in no class folder"),
    (['test/a/1.png', 'test/b/1.png'], 'no train split, only test'),
    ([f'train/{c}/{k}.png' for c in 'ab' for k in range(4)], 'a train split and nothing to test on'),
    (['train/a/1.png', 'other/a/1.png'], "'other' stands beside split folders"),
])
def test_bad_folders(tmp_path, files, message):
    for f in files: put(tmp_path/'p', f) if f.endswith('.png') else ((tmp_path/'p').mkdir(exist_ok=True), (tmp_path/'p'/f).write_text('x'))
    for fn in (check_dataset, load_data):
        with pytest.raises(BadInput, match=message.replace('(', r'\(')) as e: fn(str(tmp_path/'p'))
        assert '\n' not in str(e.value)

@pytest.mark.parametrize('text, message', [
    ('file,label\n0.png,a\n1.png,b\n9.png,a\n', "line 4: no such image file '9.png'"),
    ('file,label\n0.png,a\n1.png,b\n', "2 image files have no line, the first is '2.png'"),
    ('file,label\n0.png,a\n1.png,\n2.png,b\n3.png,b\n', "line 3: '1.png' has no label"),
    ('file,label\n0.png,a\n0.png,b\n', 'listed twice'), ('file,label\n', 'no rows'), ('a,b\n1,2\n', 'no file column'),
])
def test_bad_csv(tmp_path, text, message):
    for k in range(4): put(tmp_path/'p', f'{k}.png')
    (tmp_path/'p'/'labels.csv').write_text(text)
    with pytest.raises(BadInput, match=message): load_data(str(tmp_path/'p'))

def test_unreadable_files_stop_or_are_recorded(tmp_path):
    root = pets(tmp_path/'p'); (root/'train/cat/bad.png').write_bytes(b'not an image'); good = put(root, 'train/cat/cut.jpg', pic((8, 8)), quality=95)
    good.write_bytes(good.read_bytes()[:300])
    with pytest.raises(BadInput, match=r"2 of 18 files cannot be read: 'train/cat/bad.png' \(not an image\); 'train/cat/cut.jpg'.*unreadable: skip"): load_data(str(root))
    d = load_data(str(root), unreadable='skip')
    assert len(d) == 16 and [i for i, _ in d.skipped] == ['train/cat/bad.png', 'train/cat/cut.jpg']
    with pytest.raises(BadInput, match='2 of 18'): load_data(str(root)) # also once it is cached

def test_decompression_bomb_is_not_opened(tmp_path):
    root = pets(tmp_path/'p'); Image.new('1', (9000, 9000)).save(root/'train/cat/bomb.png')
    with pytest.raises(BadInput, match=r"bomb.png' \(ValueError: 9000 x 9000 pixels, at most 64 million are decoded"): load_data(str(root))

@pytest.mark.parametrize('name', ['/etc/x.png', '../x.png', 'a/../../x.png', 'C:\\x.png'])
def test_archives_that_lead_outside(tmp_path, name):
    b = io.BytesIO(); pic().save(b, 'PNG'); b = b.getvalue()
    with tarfile.open(tmp_path/'x.tgz', 'w:gz') as t:
        m = tarfile.TarInfo(name); m.size = len(b); t.addfile(m, io.BytesIO(b))
    with zipfile.ZipFile(tmp_path/'x.zip', 'w') as z: z.writestr(name, b)
    for f in ('x.tgz', 'x.zip'):
        with pytest.raises(BadInput, match='would lie outside the archive'): load_data(str(tmp_path/f))

def test_encrypted_zip(tmp_path):
    with zipfile.ZipFile(tmp_path/'x.zip', 'w') as z: z.writestr('train/a/1.png', b'secret')
    b = bytearray((tmp_path/'x.zip').read_bytes()); b[6] |= 1; b[b.index(b'PK\1\2') + 8] |= 1 # the flag of encryption, in both headers
    (tmp_path/'x.zip').write_bytes(b)
    with pytest.raises(BadInput, match="member 'train/a/1.png' is encrypted; unpack"): load_data(str(tmp_path/'x.zip'))

@pytest.mark.parametrize('target, message', [('/etc/passwd', 'outside'), ('../../x', 'outside'), ('b.png', 'is a link')])
def test_archives_with_links(tmp_path, target, message):
    with tarfile.open(tmp_path/'x.tar', 'w') as t:
        m = tarfile.TarInfo('train/a.png'); m.type, m.linkname = tarfile.SYMTYPE, target; t.addfile(m)
    with pytest.raises(BadInput, match=message): load_data(str(tmp_path/'x.tar'))

def test_archive_cut_short(tmp_path):
    root = pets(tmp_path/'p')
    with tarfile.open(tmp_path/'p.tgz', 'w:gz') as t: t.add(root, 'p')
    f = tmp_path/'p.tgz'; f.write_bytes(f.read_bytes()[:800])
    with pytest.raises(BadInput, match='not a whole archive'): load_data(str(f))

@pytest.mark.parametrize('name', ["a b", "it's", 'say "x"', '<script>alert(1)', 'Blüte', '花', '$x_1$', 'a;b&c'])
def test_odd_names_are_kept(tmp_path, name):
    pets(tmp_path/'p', classes=(name, 'other')); d = load_data(str(tmp_path/'p'))
    assert name in d.classes and f'train/{name}/0.png' in d.ids and json.loads((d.path/'meta.json').read_text())['classes'] == d.classes

# ---- made images

def test_synthetic_is_deterministic_and_grows_in_proportion(cache, monkeypatch):
    a = load_data('synthetic:classes=4,size=16,train=300,test=10')
    first = a.fingerprint; assert a.images.shape == (1240, 16, 16, 3)
    monkeypatch.setenv('IMGCLS_CACHE', str(cache)+'2'); assert load_data('synthetic:classes=4,size=16,train=300,test=10').fingerprint == first
    assert load_data('synthetic:classes=4,size=16,train=300,test=10,seed=1').fingerprint != first
    assert len(np.unique(a.digests, axis=0)) == len(a)
    with pytest.raises(BadInput, match='noise=999 is not allowed; a whole number from 0 to 127'): check_dataset('synthetic:noise=999')

def peak_pss(code, *args):
    "Highest memory (bytes) of a Python process and its children, shared pages counted once, and what it printed."
    p, most = subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, text=True), 0
    def tree(pid):
        yield pid
        for t in Path(f'/proc/{pid}/task').iterdir():
            for c in (t/'children').read_text().split(): yield from tree(c)
    while p.poll() is None:
        total = 0
        try:
            for pid in tree(p.pid): total += int(next(l for l in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines() if l.startswith('Pss:')).split()[1])
        except (OSError, StopIteration): continue # one of them has just ended
        most = max(most, total*1024); time.sleep(.05)
    assert p.returncode == 0
    return most, p.stdout.read()

linux = pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(), reason='reads memory from /proc/*/smaps_rollup')

@linux
def test_made_images_stay_in_bounded_memory(tmp_path):
    "30,000 more images of 32 pixels may cost their table and names, not their 92 MB of pixels."
    code = "import sys; from imgcls.data import load_data; load_data(f'synthetic:classes=2,size=32,noise=0,train={sys.argv[1]},test=5'); import time; time.sleep(.5)" # seen at least once
    assert peak_pss(code, 15500)[0] - peak_pss(code, 500)[0] < 40e6

# ---- real files

REAL = os.environ.get('IMGCLS_DATA') or str(Path(__file__).resolve().parents[2]/'shared'/'data')

@linux
@pytest.mark.skipif(not Path(REAL, 'cifar10.tgz').exists(), reason=f'needs cifar10.tgz in IMGCLS_DATA ({REAL})')
def test_cifar10_is_decoded_once_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setenv('IMGCLS_DATA', REAL)
    code = "from imgcls.data import load_data; print(len(load_data('cifar10')))"
    peak, out = peak_pss(code)
    assert int(out) == 60000 and peak <= 1.5*60000*3072, f'{peak/60000/3072:.2f} times the array'
    _no_decoding(monkeypatch); d = load_data('cifar10')
    p = P(dataset='cifar10', valid_from='test', valid_pct=.8)
    s = split_data(d, p)
    assert [len(a) for a in s] == [50000, 8000, 2000] and set(np.bincount(d.labels[s.valid])) == {800}
    assert data_fingerprint(p)
