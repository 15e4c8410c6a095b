"Loaders: the same pictures as torchvision makes, in order, reproducible, resident or mapped, and what fastai expects of them."
import os, threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torchvision.transforms import v2

import imgcls.loaders as L
from imgcls.data import load_data, prepare_data
from imgcls.loaders import apply, dataloaders, draw, draw_mix, mix, pack
from imgcls.params import BadInput, make_params

P = lambda **kw: make_params({'dataset': 'digits', 'device': 'cpu', 'batch_size': 64, **kw})
ALL = ['crop', 'resize_crop', 'hflip', 'vflip', 'rotate', 'gamma', 'jitter', 'grayscale', 'cutout']
UNIT = torch.full((4,), 1/255), torch.zeros(4)

@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    old = os.environ.get('IMGCLS_CACHE'); os.environ['IMGCLS_CACHE'] = str(tmp_path_factory.mktemp('cache'))
    yield
    os.environ.pop('IMGCLS_CACHE'); old and os.environ.__setitem__('IMGCLS_CACHE', old)

@pytest.fixture(scope='module')
def x(): # smooth pictures: photographs, not noise
    rng = np.random.RandomState(0)
    return np.stack([np.asarray(Image.fromarray(rng.randint(0, 256, (9, 9, 3), np.uint8)).resize((32, 32), 2)) for _ in range(24)])

def ours(x, d, size=32): return apply(pack(x), torch.arange(len(x)), x.shape[1], size, d, *UNIT)
def picture(x, k): return torch.from_numpy(x[k]).permute(2, 0, 1)/255
def drawn(name, x, seed=0): return draw([name], 'all', len(x), x.shape[1], x.shape[1], torch.Generator().manual_seed(seed))

# ---- each augmentation beside torchvision's, with the same numbers

REFERENCE = {
    'crop': lambda t, d: TF.crop(TF.pad(t, [4]*4), int(d['oy'])+4, int(d['ox'])+4, 32, 32),
    'resize_crop': lambda t, d: TF.crop(TF.resize(t, [40, 40], antialias=True), int(d['ty']), int(d['tx']), 32, 32),
    'hflip': lambda t, d: TF.horizontal_flip(t) if d['hflip'] else t,
    'vflip': lambda t, d: TF.vertical_flip(t) if d['vflip'] else t,
    'rotate': lambda t, d: TF.rotate(t, float(d['angle']), interpolation=TF.InterpolationMode.BILINEAR),
    'gamma': lambda t, d: TF.adjust_gamma(t, float(d['gamma'])),
    'jitter': lambda t, d: TF.adjust_contrast(TF.adjust_brightness(t, float(d['brightness'])), float(d['contrast'])),
    'grayscale': lambda t, d: TF.rgb_to_grayscale(t, 3) if d['grayscale'] else t,
    'cutout': lambda t, d: TF.erase(t, i := max(0, int(d['cy'])-4), j := max(0, int(d['cx'])-4), min(32, int(d['cy'])+4)-i, min(32, int(d['cx'])+4)-j, torch.zeros(3, 1, 1)),
}

@pytest.mark.parametrize('name', ALL)
def test_augmentation_equals_torchvision(name, x):
    d = drawn(name, x); out, changed = ours(x, d), 0
    for k in range(len(x)):
        want = REFERENCE[name](picture(x, k), {n: v[k] for n, v in d.items()})
        assert (out[k]-want).abs().max() < 2e-4, (name, k, (out[k]-want).abs().max())
        changed += not torch.equal(want, picture(x, k))
    assert changed >= 2 # the test saw it at work

def test_draws_span_their_range(x):
    big = np.zeros((4000, 32, 32, 3), np.uint8)
    d = {k: v for n in ALL for k, v in drawn(n, big).items()}
    assert set(d['oy'].tolist()) == set(d['ox'].tolist()) == set(range(-4, 5)) and set(d['ty'].tolist()) == set(range(9))
    for k, p in (('hflip', .5), ('vflip', .5), ('grayscale', .2)): assert abs(d[k].float().mean() - p) < .04
    for k, lo, hi in (('angle', -15, 15), ('gamma', .8, 1.2), ('brightness', .8, 1.2), ('contrast', .8, 1.2)):
        assert lo <= d[k].min() < lo + (hi-lo)*.02 and hi >= d[k].max() > hi - (hi-lo)*.02
    assert d['side'].unique().tolist() == [8] and d['cy'].unique().numel() == 32

def test_crop_and_flip_with_normalising_equal_torchvision_compose(x):
    mean, std = (.49, .48, .45), (.25, .24, .26)
    d = {**drawn('crop', x), **drawn('hflip', x, 1)}
    s, b = torch.tensor([*(1/(255*v) for v in std), 0]), torch.tensor([*(-m/v for m, v in zip(mean, std)), 0])
    out = apply(pack(x), torch.arange(len(x)), 32, 32, d, s, b)
    for k in range(len(x)):
        t = REFERENCE['hflip'](REFERENCE['crop'](picture(x, k), {n: v[k] for n, v in d.items()}), {n: v[k] for n, v in d.items()})
        assert torch.allclose(out[k], TF.normalize(t, mean, std), atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)

def test_one_at_a_time(x):
    n = 3000; d = draw(ALL, 'one', n, 32, 32, torch.Generator().manual_seed(0))
    on = {'crop': (d['oy'] != 0) | (d['ox'] != 0), 'resize_crop': d['resize_crop'], 'hflip': d['hflip'], 'vflip': d['vflip'], 'rotate': d['angle'] != 0, 'gamma': d['gamma'] != 1,
          'jitter': d['brightness'] != 1, 'grayscale': d['grayscale'], 'cutout': d['side'] > 0}
    assert torch.stack(list(on.values())).sum(0).max() == 1
    for k in ('resize_crop', 'rotate', 'cutout'): assert abs(on[k].float().mean() - 1/9) < .02
    plain = {k: v[:len(x)] for k, v in d.items()}
    idle = ~torch.stack(list(on.values())).any(0)[:len(x)]
    assert idle.any() and torch.allclose(ours(x, plain)[idle], ours(x, {})[idle], atol=1e-6) # neutral numbers leave a picture alone

def test_mixup_and_cutmix_equal_torchvision(x):
    t, y = torch.from_numpy(x).permute(0, 3, 1, 2)/255, torch.arange(24) % 5
    for kind, tv in (('mixup', v2.MixUp(num_classes=5)), ('cutmix', v2.CutMix(num_classes=5))):
        d = draw_mix(*(1., 0.) if kind == 'mixup' else (0., 1.), 50, 32, 7)
        assert d['cut'].all() == (kind == 'cutmix')
        for b in range(50):
            mine, soft = mix(t, y, {k: v[b] for k, v in d.items()}, 5)
            y0, y1, x0, x1 = d['box'][b].tolist()
            prm = dict(labels=y, batch_size=24, lam=float(d['lam'][b]), box=(x0, y0, x1, y1), lam_adjusted=float(d['lam'][b]))
            assert torch.allclose(mine, tv.transform(t, prm), atol=1e-5) and torch.allclose(soft, tv.transform(y, prm), atol=1e-5)
    both = draw_mix(.4, 1., 400, 32, 0)
    assert .4 < both['cut'].float().mean() < .6 and (both['box'][~both['cut']] == 0).all() and both['lam'].min() >= 0 and both['lam'].max() <= 1

# ---- sizes

def test_sizes_up_and_down(x):
    d = ours(x, {}, 64); want = TF.resize(torch.from_numpy(x).permute(0, 3, 1, 2)/255, [64, 64], antialias=True)
    assert (d-want).abs().max() < 1e-4
    dls = dataloaders(P(dataset='synthetic-a', size=16)); data, s = dls.data, dls.splits
    want = TF.resize(torch.from_numpy(data.images[s.valid[:64]]).permute(0, 3, 1, 2), [16, 16], antialias=True)
    got = dls.valid.decode(dls.valid.one_batch())[0]
    assert (got*255 - want).abs().max() <= 1.01
    assert dataloaders(P(dataset='synthetic-a', size=224, batch_size=2)).one_batch()[0].shape == (2, 3, 224, 224)

# ---- order and reproducibility

def same(a, b): return all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))

@pytest.mark.parametrize('kw', [dict(augment=['crop', 'hflip']), dict(augment=ALL, augment_mode='one', size=12), dict(augment=['crop'], mixup=.2, cutmix=1.)])
def test_batches_depend_on_seed_and_epoch_alone(kw):
    a, b, c = dataloaders(P(**kw)), dataloaders(P(**kw)), dataloaders(P(seed=1, **kw))
    e0, e1 = list(a.train), list(a.train)
    assert not same(e0, e1) and not same(e0, list(c.train))
    torch.manual_seed(123); np.random.seed(5); b.one_batch(); b.show_batch(max_n=2)
    assert same(list(b.train), e0)                           # looking at batches changed nothing
    b.train.set_epoch(1); assert same(list(b.train), e1)    # a resumed training draws the same
    b.train.set_epoch(0); assert same(list(b.train), e0) and same(list(b.train), e1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1); b.train.set_epoch(0); assert same(list(b.train), e0)
    finally: torch.set_num_threads(threads)

def test_every_training_image_once_an_epoch_full_batches_only():
    dls = dataloaders(P()); order, *_ = dls.train.plan(3)
    assert len(order) == len(order.unique()) == len(dls.splits.train)//64*64 and len(dls.train) == len(list(dls.train))
    assert {len(y) for _, y in dls.train} == {64}
    assert len(dataloaders(P(steps_max=3)).train) == 3 == len(list(dataloaders(P(steps_max=3)).train)) and len(dataloaders(P(steps_max=3)).valid) == len(dls.valid)
    assert [len(y) for _, y in dataloaders(P(train_limit=3)).train] == [30] # fewer images than a batch

def test_valid_and_test_are_plain_and_in_order():
    dls = dataloaders(P(augment=ALL, mixup=1., cutmix=1., normalize='none', steps_max=1))
    for dl, rows in ((dls.valid, dls.splits.valid), (dls.test, dls.splits.test)):
        xs, ys = map(torch.cat, zip(*dl)); d = dls.data
        assert torch.equal(ys, torch.as_tensor(d.labels[rows])) and torch.allclose(xs, torch.from_numpy(d.images[rows]).permute(0, 3, 1, 2)/255)

def test_mapped_from_disk_gives_the_same_batches(monkeypatch):
    kw = dict(dataset='synthetic-a', augment=['crop', 'hflip', 'rotate'], size=32)
    d = dataloaders(P(**kw)); want = [list(dl) for dl in d.loaders]; flat = d.train.dataset.store.flat(torch.device('cpu')); assert flat is not None
    del d, flat; L._stores.clear()
    monkeypatch.setenv('IMGCLS_RESIDENT_MB', '0')
    d = dataloaders(P(**kw)); assert d.train.dataset.store.flat(torch.device('cpu')) is None
    for dl, w in zip(d.loaders, want): assert same(list(dl), w)
    before = threading.active_count()
    it = iter(d.train); next(it); it.close(); assert threading.active_count() <= before # the fetching thread ends with it
    L._stores.clear()

def test_the_test_split_is_not_read_until_it_is_asked_for():
    L._stores.clear(); dls = dataloaders(P()); list(dls.train); list(dls.valid)
    assert dls.test.dataset.store._on is None
    list(dls.test); assert dls.test.dataset.store._on is not None

def test_training_is_left_its_threads():
    n = torch.get_num_threads(); torch.set_num_threads(2)
    try:
        for b in dataloaders(P(augment=['crop'])).train: assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(n)

# ---- statistics, weights, devices

def test_normalising():
    dls = dataloaders(P()); x = torch.cat([b[0] for b in dls.train.new(shuffle=False, drop_last=False)])
    assert x.mean((0, 2, 3)).abs().max() < 1e-3 and (x.std((0, 2, 3))-1).abs().max() < 1e-3
    assert dls.stats == L.pixel_stats(dls.data.images, dls.splits.train)
    assert dataloaders(P(normalize='half')).stats == ((.5,)*3, (.5,)*3)

def test_class_weights_balance_the_loss(tmp_path):
    rng = np.random.RandomState(0)
    for c, n in (('a', 30), ('b', 10)):
        (tmp_path/c).mkdir()
        for k in range(n): Image.fromarray(rng.randint(0, 256, (8, 8, 3), np.uint8)).save(tmp_path/c/f'{k}.png')
    assert dataloaders(P(dataset=str(tmp_path))).class_weights is None
    dls = dataloaders(P(dataset=str(tmp_path), class_weights=True)); n = np.bincount(dls.data.labels[dls.splits.train])
    assert torch.allclose(dls.class_weights*torch.tensor(n), torch.full((2,), n.sum()/2)) and dls.train_ds.loss_func.func.weight is dls.class_weights

def test_unknown_device_is_one_line():
    if torch.cuda.is_available(): pytest.skip('there is a GPU')
    with pytest.raises(BadInput, match="device: 'cuda' is not available here"): dataloaders(P(device='cuda'))

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_gpu_batches_equal_those_of_the_cpu():
    kw = dict(dataset='synthetic-a', augment=ALL, mixup=.3)
    for (x, y), (u, v) in zip(dataloaders(P(**kw)).train, dataloaders(P(**{**kw, 'device': 'cuda'})).train, strict=True):
        assert u.is_cuda and torch.allclose(x, u.cpu(), atol=2e-3) and torch.allclose(y, v.cpu(), atol=1e-5)

# ---- what fastai expects

@pytest.fixture(scope='module')
def learn():
    from fastai.vision.all import Learner, accuracy
    torch.manual_seed(0)
    dls = dataloaders(P(augment=['crop'], batch_size=32))
    learn = Learner(dls, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)), metrics=accuracy, lr=.02)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4)
    return learn

def test_learner_trains_and_predicts_in_order(learn):
    with learn.no_bar():
        preds, targs = learn.get_preds(); dls = learn.dls
        assert torch.equal(targs, torch.as_tensor(dls.data.labels[dls.splits.valid])) and (preds.argmax(1) == targs).float().mean() > .8
        _, t = learn.get_preds(ds_idx=2); assert torch.equal(t, torch.as_tensor(dls.data.labels[dls.splits.test]))
        _, t = learn.get_preds(dl=dls.train); assert torch.equal(t, torch.as_tensor(dls.data.labels[dls.splits.train])) # fastai asks for all of them, in order
        assert learn.validate()[1] > .8

def test_interpretation_of_any_split_shows_its_own_pictures(learn):
    import matplotlib; matplotlib.use('agg')
    from fastai.vision.all import ClassificationInterpretation
    with learn.no_bar():
        for idx, rows in ((1, learn.dls.splits.valid), (2, learn.dls.splits.test)):
            i = ClassificationInterpretation.from_learner(learn, ds_idx=idx)
            assert i.confusion_matrix().sum() == len(rows) and len(i.most_confused()) < 90
            x, _, targ, *_ = i[torch.tensor([5, 2])]
            want = torch.from_numpy(learn.dls.data.images[rows[[5, 2]]]).permute(0, 3, 1, 2)/255
            assert torch.allclose(learn.dls.valid.decode((x, targ))[0], want, atol=1e-5) and targ.tolist() == learn.dls.data.labels[rows[[5, 2]]].tolist()
            i.plot_top_losses(4); i.plot_confusion_matrix()
        learn.show_results(max_n=4); learn.dls.show_batch(max_n=4, unique=True); learn.dls.valid.show_batch(max_n=4)

def test_new_images_from_files_arrays_and_pil(learn, tmp_path):
    a = np.array(learn.dls.data.images[learn.dls.splits.valid[0]]); Image.fromarray(a).save(tmp_path/'a.png'); Image.fromarray(a).resize((40, 16)).save(tmp_path/'b.png')
    dl = learn.dls.test_dl([tmp_path/'a.png', a, Image.fromarray(a), str(tmp_path/'b.png')])
    with learn.no_bar():
        preds, targs = learn.get_preds(dl=dl)
        label, k, probs = learn.predict(tmp_path/'a.png')
    assert targs is None and torch.allclose(preds[0], preds[1]) and torch.allclose(preds[0], preds[2]) and len(preds) == 4
    assert label == learn.dls.vocab[int(k)] and torch.allclose(probs, preds[0], atol=1e-5)

def test_lr_find_and_export_without_the_data(learn, tmp_path):
    import matplotlib; matplotlib.use('agg')
    with learn.no_bar(): assert learn.lr_find(num_it=12, show_plot=False).valley > 0
    learn.path = tmp_path; learn.export('m.pkl'); assert (tmp_path/'m.pkl').stat().st_size < 300_000

def test_pretrained_learner_does_not_normalise_twice():
    from fastai.vision.learner import _add_norm
    dls = dataloaders(P(normalize='imagenet')); x = dls.one_batch()[0]
    _add_norm(dls, dict(stats=([.1]*3, [.1]*3)), True, n_in=3)
    assert torch.equal(dls.one_batch()[0], x)
