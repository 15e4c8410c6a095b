"Labels for new images: order of rows, every kind of file, votes and averages, the gallery, ONNX, and what is refused. Digits only, but for one test that says so."
import csv, io, itertools, json, os, re, shutil, subprocess, sys, tarfile, zipfile
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest
from PIL import Image

from imgcls import cli, records
from imgcls.data import load_data
from imgcls.evaluation import average, predictions
from imgcls.experiment import ensemble_members, load_run, member_predictions, put_together, save_ensemble
from imgcls.params import BadInput, make_params
from imgcls.predict import Model, Team, find_images, find_run, label_images, load_team, natural, split_arguments
from imgcls.records import begin_record, read_record, write_record
from tests.small import small_params, small_run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Records demo/a, b, c, a run without weights, one over two classes, an ensemble; `new/` with 30 pictures, one of them none."
    tmp = tmp_path_factory.mktemp('predict')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('IMGCLS_RESULTS', str(tmp/'results')); m.setenv('IMGCLS_CACHE', str(tmp/'cache')); m.chdir(tmp)
        for i, r in enumerate('abc'): small_run(small_params(r, seed=i, keep_probabilities=True, tta=r == 'c'))
        small_run(small_params('light', keep_weights='none', epochs=1))
        small_run(small_params('two', dataset='synthetic:classes=2,size=16,train=20,test=4', epochs=1))
        e = make_params(dict(study='demo', run='vote', profile='quick', template='ensemble', members=['demo/a', 'demo/b', 'demo/c'], tie_break='demo/c'))
        found = {f'demo/{r}': (tmp/f'results/quick/demo/{r}/s{i}', read_record(tmp/f'results/quick/demo/{r}/s{i}')) for i, r in enumerate('abc')}
        save_ensemble(begin_record(e), e, found, put_together(e, member_predictions(e, found), found['demo/a'][1].data.classes), 1.)
        digits = load_data('digits')
        (tmp/'new'/'more').mkdir(parents=True); (tmp/'empty').mkdir()
        for i in range(30): Image.fromarray(digits.images[50*i]).save(tmp/'new'/('more' if i > 24 else '')/f'img{i+1}.png')
        (tmp/'new'/'img7.png').write_bytes(b'no picture'); (tmp/'new'/'readme.txt').write_text('x')
        yield tmp

NAMES = [f'img{i}.png' for i in range(1, 26)] + [f'more/img{i}.png' for i in range(26, 31)]

def call(*argv):
    import contextlib
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err: status = cli.main([str(a) for a in argv])
    return status, out.getvalue(), err.getvalue()

def rows(text): return list(csv.reader(io.StringIO(text)))


def test_a_submission_has_a_row_an_image_in_the_order_of_the_folder(place):
    status, out, err = call('predict', 'demo/a', 'new', '-o', 'sub.csv', '--columns', 'id,category')
    table = rows((place/'sub.csv').read_text())
    assert status == 0 and out == '' and table[0] == ['id', 'category'] and [r[0] for r in table[1:]] == NAMES
    assert table[7] == ['img7.png', 'unreadable'] and all(r[1] in map(str, range(10)) for r in table[1:] if r[0] != 'img7.png')
    assert 'cannot be read: img7.png' in err and "1 of 30 files cannot be read and are marked 'unreadable'" in err and 'images/s' in err and '1 files without the extension' in err
    assert not list(place.glob('.sub*'))

def test_natural_order():
    names = ['a10.png', 'a2.png', 'b/1.png', 'a01.png', 'a1.png', 'B.png', '10.png', '9.png', 'b/10.png', 'b/9.png']
    assert sorted(names, key=natural) == ['9.png', '10.png', 'B.png', 'a01.png', 'a1.png', 'a2.png', 'a10.png', 'b/1.png', 'b/9.png', 'b/10.png']

def test_folder_archives_and_patterns_give_the_same_rows(place):
    with zipfile.ZipFile('new.zip', 'w') as z:
        for n in reversed(NAMES): z.write(place/'new'/n, f'wrapped/{n}')
    with tarfile.open('new.tgz', 'w:gz') as t: t.add(place/'new', '.')
    folder = call('predict', 'demo/a', 'new')[1]
    for images in (['new.zip'], ['new.tgz'], ['new/**/*.png']): assert call('predict', 'demo/a', *images)[1] == folder, images
    some = call('predict', 'demo/a', *(f'new/{n}' for n in NAMES[:3]))[1] # a pattern that the shell has spelled out
    assert some == '\n'.join(folder.split('\n')[:4]) + '\n'
    Path('new.zip').unlink(); Path('new.tgz').unlink()

def test_a_pattern_of_the_shell_is_not_taken_for_runs(place):
    assert split_arguments(['demo/a', 'new/img1.png', 'new/img2.png']) == (['demo/a'], ['new/img1.png', 'new/img2.png'])
    assert split_arguments(['optimizers', 'capacity/simple_32', 'new']) == (['optimizers', 'capacity/simple_32'], ['new'])
    assert split_arguments(['demo/a', 'demo/b', 'new']) == (['demo/a', 'demo/b'], ['new'])

def test_any_size_and_mode(place, tmp_path):
    rng = np.random.default_rng(0)
    a = lambda *s: rng.integers(0, 256, s, np.uint8)
    ims = dict(rgb=Image.fromarray(a(40, 90, 3)), rgba=Image.fromarray(a(9, 9, 4)), la=Image.fromarray(a(8, 8, 2)), gray=Image.fromarray(a(300, 20)), deep=Image.fromarray(rng.integers(0, 65536, (12, 12), np.uint16)),
               one=Image.new('RGB', (1, 1)), bits=Image.fromarray(a(16, 16) > 99), palette=Image.fromarray(a(30, 30, 3)).quantize(16), big=Image.fromarray(a(700, 500, 3)))
    for k, im in ims.items(): im.save(tmp_path/f'{k}.png')
    Image.fromarray(a(20, 30, 4), 'CMYK').save(tmp_path/'cmyk.jpg'); ims['palette'].save(tmp_path/'moving.gif', save_all=True, append_images=[ims['palette']]); ims['rgb'].save(tmp_path/'x.webp')
    status, out, err = call('predict', 'demo/a', tmp_path)
    assert status == 0 and len(rows(out)) == 13 and 'unreadable' not in out, err


def test_it_says_what_the_run_said_of_its_test_images(place):
    for r, seed in (('a', 0), ('c', 2)): # c averages over mirror images
        folder, record = find_run(f'demo/{r}')
        said = records.predictions(folder, 'test')
        digits = load_data('digits'); at = {k: i for i, k in enumerate(digits.ids)}
        P = Model(folder, record)(digits.images[[at[k] for k in said.id]])
        assert (P.argmax(1) == said.top1).all() and np.abs(P - said[[f'p{i}' for i in range(10)]].to_numpy(float)).max() < 1e-3

@pytest.mark.skipif(sys.platform != 'linux', reason='other systems refuse such file names')
def test_a_name_that_is_no_text_is_refused_before_the_work(place, tmp_path):
    (tmp_path/'odd').mkdir(); shutil.copy(place/'new/img1.png', os.fsencode(tmp_path/'odd')+b'/bad\xff.png')
    status, out, err = call('predict', 'demo/a', tmp_path/'odd', '-o', tmp_path/'sub.csv')
    assert status == 2 and 'is no text; rename' in err and err.count('\n') == 1 and not (tmp_path/'sub.csv').exists()

def test_processes_and_threads_change_no_label(place):
    team, (entries, _) = load_team(['demo/a', 'demo/b'], average=True), find_images('new', place/'empty')
    many = [e._replace(id=f'{k}-{e.id}') for k in range(20) for e in entries]
    here, there = label_images(team, many, workers=0), label_images(team, many, workers=2)
    assert here.files == there.files and (here.index == there.index).all() and len(there.errors) == 20 and here.errors == there.errors
    assert (here.index.reshape(20, 30) == here.index[:30]).all() and (here.index < 0).sum() == 20
    assert np.abs(here.probabilities - there.probabilities)[here.index >= 0].max() < 1e-5

def fake(name, valid=.5): return SimpleNamespace(name=name, classes=list('xyz'), record=SimpleNamespace(metric=lambda s: valid))

def test_every_vote_of_three_over_three_classes():
    guesses = np.array(list(itertools.product(range(3), repeat=3)))
    P = [np.full((27, 3), .2, np.float32) for _ in range(3)]
    for k in range(3): P[k][np.arange(27), guesses[:, k]] = .6
    for decides in range(3):
        got, probs = Team([fake(n) for n in 'abc'], 'vote', 'abc'[decides]).decide(P)
        want = [max(set(g), key=list(g).count) if len(set(g)) < 3 else g[decides] for g in guesses.tolist()]
        assert got.tolist() == want and probs is None

def test_averages_are_those_of_saved_predictions():
    P = np.random.default_rng(0).dirichlet(np.ones(3), (2, 50)).astype(np.float32)
    frames = {n: predictions(range(50), [0]*50, q, 'test', True) for n, q in zip('ab', P)}
    for rule, w in (('average', 'equal'), ('weighted', dict(a=.9, b=.3))):
        index, Q = Team([fake('a', .9), fake('b', .3)], rule).decide(list(P))
        saved = average(frames, list('xyz'), w, True)
        assert np.abs(Q - saved[['p0', 'p1', 'p2']].to_numpy(float)).max() < 1e-3 and (index == saved.top1).mean() > .95

def test_a_vote_an_average_and_an_ensemble_in_one_call(place):
    vote = call('predict', 'demo/a', 'demo/b', 'demo/c', 'new', '--tie-break', 'demo/c')
    assert vote[0] == 0 and call('predict', 'demo/vote', 'new')[1] == vote[1] # the ensemble's record knows its members
    one = {r: dict(rows(call('predict', f'demo/{r}', 'new')[1])[1:]) for r in 'abc'}
    for name, label in rows(vote[1])[1:]:
        said = [one[r][name] for r in 'abc']
        if len(set(said)) < 3: assert label == max(set(said), key=said.count)
    status, out, _ = call('predict', 'demo/a', 'demo/b', 'new', '--average', '--probabilities')
    t = pd.read_csv(io.StringIO(out), dtype={'label': str}).set_index('file')
    assert status == 0 and t.columns.tolist() == ['label', *map(str, range(10))]
    p = t.drop(columns='label'); bad = p.index == 'img7.png'
    assert p[bad].isna().all().all() and np.allclose(p[~bad].sum(axis=1), 1, atol=1e-4) and (p[~bad].idxmax(axis=1) == t.label[~bad]).all()

def test_a_study_stands_for_its_best_run_on_valid(place):
    best = max((read_record(f.parent) for f in sorted(place.glob('results/quick/demo/*/s*/record.json'))), key=lambda r: r.metric('valid'))
    assert f'by {best.name} (seed' in call('predict', 'demo', 'new')[2] or best.params['template'] == 'ensemble' or best.name in ('demo/two', 'demo/light')
    assert find_run('demo')[1].name == best.name

def test_a_record_whose_weights_are_elsewhere_gives_way_to_a_smaller_one(place):
    try:
        for run in ('a', 'b', 'vote'): # as a clone finds committed records: no weights beside them
            kept = next(place.glob(f'results/quick/demo/{run}/s*')); folder = place/'results/cpu/demo'/run/kept.name
            shutil.copytree(kept, folder, ignore=shutil.ignore_patterns('model.safetensors'))
            write_record(folder, read_record(kept).model_copy(update=dict(profile='cpu')))
        assert [find_run(f'demo/{r}')[1].profile for r in ('a', 'vote')] == ['quick', 'quick'] and load_run('demo/a').params.profile == 'quick'
        status, _, err = call('predict', 'demo/a', 'new', '--profile', 'cpu')
        assert status == 2 and 'no weights in' in err
        shutil.copy(place/'results/quick/demo/a/s0/model.safetensors', place/'results/cpu/demo/a/s0')
        assert [find_run(f'demo/{r}')[1].profile for r in ('a', 'vote')] == ['cpu', 'quick'] # of the vote, one member's weights are not all
    finally: shutil.rmtree(place/'results/cpu')


@pytest.mark.parametrize('args,words', [
    (['demo/a'], 'name a run, then its images'), (['demo/a', 'empty'], 'no images in empty'), (['demo/a', 'nowhere'], 'nowhere: no such folder, archive or file'), (['demo/a', 'x*.png'], "no file matches 'x*.png'"),
    (['demo/a', 'new/img7.png'], 'none of the 1 files can be read'), (['demo/light', 'new'], 'no weights in'), (['demo/light', 'new'], 'keep_weights was none'),
    (['demo/a', 'demo/b', 'new'], "--tie-break: votes of 2 runs can tie and none is named to decide; set it to one of demo/a, demo/b, or give --average"),
    (['demo/a', 'demo/b', 'new', '--tie-break', 'demo/bb'], "is none of these runs (did you mean 'demo/b'?)"), (['demo/a', 'demo/a', 'new', '--average'], 'demo/a is there twice'),
    (['demo/a', 'demo/two', 'new', '--average'], "class 0 is '0' in demo/a (10 classes) and 'c00000' in demo/two"), (['demo/a', 'demo/b', 'new', '--average', '--tie-break', 'demo/a'], 'give one of them'),
    (['demo/a', 'new', '--average'], 'has nothing to be put together with'), (['demo/vote', 'new', '--average'], 'has a rule of its own (vote)'), (['demo/a', 'demo/vote', 'new', '--average'], 'cannot be a member'),
    (['demo/vote', 'new', '--probabilities'], 'a vote has none'), (['demo/a', 'new', '--columns', 'id'], 'two different names are needed'), (['demo/a', 'new', '--columns', 'id,3', '--probabilities'], "'3' is the name of a class too"),
    (['demo/a', 'new', '--mark', '3'], 'the name of a class'), (['demo/a', 'new', '--gallery', 'no/page.html'], 'no such folder no'), (['demo/a', 'new', '-o', 'no/sub.csv'], 'no such folder no'),
    (['demo/a', 'new', '--gallery', 'p.html', '--gallery-classes', '11'], "no class '11'"), (['demo/a', 'new', '--gallery-images', '0'], 'whole number from 1'), (['demo/a', 'new', '--seed', '9'], 'demo/a: no'), (['demo/a', 'new', '--profile', '/tmp'], "'/tmp' is not a profile"), (['a**', 'new'], 'a**: no such study'),
    (['demo/a', 'new', '--gallery', 'bad.csv'], 'give them different names'),
    (['optimizers/adam_tahn', 'new'], "did you mean 'adam_tanh'?"), (['optimizers/adam_tanh', 'new'], 'make it with: imgcls run optimizers/adam_tanh')], ids=lambda x: ' '.join(x) if isinstance(x, list) else '')
def test_bad_input_is_one_line_and_writes_nothing(place, args, words):
    status, out, err = call('predict', *args, *([] if '-o' in args else ['-o', 'bad.csv']))
    last = err.strip().split('\n')[-1]
    assert status == 2 and words in last and out == '' and not (place/'bad.csv').exists() and not (place/'p.html').exists(), err
    assert 'images, by' not in err or 'can be read' in words, 'refused only after the work'


class Page(HTMLParser):
    def __init__(self, text): super().__init__(); self.images, self.heads, self.tags = [], [], []; self.feed(text)
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs))); self.images += [dict(attrs)]*(tag == 'img')

def test_the_gallery_is_one_file_that_says_what_it_shows(place, browser_page):
    assert call('predict', 'demo/a', 'new', '-o', 'sub.csv', '--gallery', 'page.html', '--gallery-images', '2')[0] == 0
    text = (place/'page.html').read_text(); page = Page(text)
    label = dict(rows((place/'sub.csv').read_text())[1:])
    want = [(n, c) for c in map(str, range(10)) for n in [n for n in NAMES if label[n] == c][:2]]
    assert [re.match(r'(.*), predicted as (\d)', i['alt']).groups() for i in page.images] == want
    assert all(i['src'].startswith('data:image/') for i in page.images) and not re.search(r'https?:|<script|<link', text) and page.tags[0] == ('html', {'lang': 'en'})
    tab, problems = browser_page
    tab.goto(f'file://{place}/page.html')
    assert tab.evaluate("[...document.images].every(i => i.naturalWidth > 0)") and tab.locator('h2').count() == 10 and not problems

def test_names_in_the_gallery_are_text(place, tmp_path):
    Image.new('RGB', (9, 9)).save(tmp_path/'<b onload=x>"&.png')
    call('predict', 'demo/a', tmp_path, '--gallery', 'page.html')
    assert '<b onload' not in (place/'page.html').read_text() and Page((place/'page.html').read_text()).images[0]['alt'].startswith('<b onload=x>"&.png')


def test_onnx_is_held_against_torch_and_runs_without_it(place):
    status, out, err = call('export', 'demo/c', '-o', 'model.onnx') # with mirror images
    assert status == 0 and 'largest difference of a probability to torch on 145 images' in out, err
    assert not list(place.glob('.model*')) and not list(place.glob('model.onnx.*'))
    import onnxruntime
    session = onnxruntime.InferenceSession('model.onnx'); about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about['classes']) == [str(i) for i in range(10)] and about['size'] == '8' and session.get_inputs()[0].shape[1:] == [8, 8, 3]
    x, m = load_data('digits').images[::9], Model(*find_run('demo/c'))
    m.dtype = __import__('torch').float32
    for n in (1, 7, len(x)): assert np.abs(session.run(None, {'images': np.asarray(x[:n])})[0] - m(x[:n])).max() < 1e-5
    assert str(ROOT).encode() not in (place/'model.onnx').read_bytes() # nobody's folders
    # the lines of the documentation, on their own
    cells = json.loads((ROOT/'nbs/10_predict.ipynb').read_text())['cells']
    texts = [''.join(c['source']) for c in cells]
    code, = ['\n'.join(texts[i:i+2]) for i, t in enumerate(texts) if t.startswith('# label a picture with onnxruntime alone')]
    (place/'alone.py').write_text(code.replace('new/1.png', 'new/img1.png') + "\nimport sys\nassert not {'torch', 'imgcls', 'fastai'} & set(sys.modules)\n")
    r = subprocess.run([sys.executable, 'alone.py'], cwd=place, capture_output=True, text=True, timeout=60)
    assert r.returncode == 0 and r.stdout.split()[0] == rows(call('predict', 'demo/c', 'new')[1])[1][1], r.stderr

def test_onnx_that_differs_is_not_written(place, monkeypatch):
    monkeypatch.setattr('imgcls.predict.TOLERANCE', 0.)
    monkeypatch.setattr('onnxruntime.InferenceSession.run', lambda s, names, feed: [np.full((len(feed['images']), 10), .1, np.float32)])
    with pytest.raises(RuntimeError, match='ONNX and torch differ by'): cli.main(['export', 'demo/a', '-o', 'other.onnx'])
    assert not list(place.glob('*other*'))

@pytest.mark.parametrize('args,words', [(['demo/vote'], 'export its members: demo/a, demo/b, demo/c'), (['demo/light'], 'no weights in'), (['demo/a', '-o', 'no/m.onnx'], 'no such folder no'), (['demo/a', '--images', 'empty'], 'no images in empty')])
def test_what_cannot_be_exported(place, args, words):
    status, _, err = call('export', *args)
    assert status == 2 and words in err


def test_real_images_out_of_their_archive(place, tmp_path):
    "CIFAR-10: needs cifar10.tgz in IMGCLS_DATA. 1,000 test images in a tar, by a convnet with random weights."
    archive = Path(os.environ.get('IMGCLS_DATA', ''))/'cifar10.tgz'
    if not archive.is_file(): pytest.skip('no cifar10.tgz in IMGCLS_DATA')
    import torch
    from safetensors.torch import save_file
    from imgcls.models import build_model
    from imgcls.records import DataInfo, ModelInfo, Record, commit_record, params_dir, write_record
    p = make_params(dict(study='demo', run='cifar', profile='quick', arch='convnet', size=32, threads=1, precision='fp32')).resolve()
    folder = begin_record(p); torch.manual_seed(0); save_file(build_model('convnet', 10, 32, **p.arch_args).state_dict(), folder/'model.safetensors')
    write_record(folder, Record(study='demo', run='cifar', seed=0, profile='quick', status='done', key=p.key, params=p.as_dict(), data=DataInfo(name='cifar10', fingerprint='', classes=list('abcdefghij')),
                                model=ModelInfo(arch='convnet', stored=32, size=32, mean=[.5]*3, std=[.5]*3)))
    commit_record(folder, params_dir(p))
    with tarfile.open(archive, 'r|gz') as t, tarfile.open(tmp_path/'some.tar', 'w') as out:
        for m in itertools.islice((m for m in t if m.isfile() and m.name.endswith('.jpg')), 1000): out.addfile(m, t.extractfile(m))
    status, out, err = call('predict', 'demo/cifar', tmp_path/'some.tar')
    with tarfile.open(tmp_path/'some.tar') as t: names = t.getnames()
    top = os.path.commonpath(map(os.path.dirname, names))
    assert status == 0 and [r[0] for r in rows(out)[1:]] == sorted((n[len(top)+1:] for n in names), key=natural) and 'unreadable' not in out, err
    assert re.search(r'1,000 images in [\d.]+ s, [\d,]+ images/s', err)
