"Backbones: weights from everywhere and none from elsewhere, groups, freezing to the bit, fastai's own rates, features computed once. No network."
import contextlib, hashlib, http.server, pickle, threading, time
from functools import partial
from pathlib import Path

import numpy as np, pytest, torch
from fastai.callback.core import Callback
from safetensors.torch import save_file
from torch import nn

from imgcls import pretrained
from imgcls.loaders import NORMS, dataloaders
from imgcls.models import build_model
from imgcls.params import ARCHS, BadInput, Backbone, make_params
from imgcls.pretrained import (fetch, imagenet_source, last_stage, load_pretrained, param_groups, put_weights, read_weights, set_head)
from imgcls.training import fit, freeze, learner, load_weights, phases_of, probabilities, save_weights

ARCH = 'mobilenet_v3_small'
BACKBONES = [n for n, c in ARCHS.items() if issubclass(c, Backbone)]

def params(**kw):
    return make_params(dict(dataset='synthetic-a:train=16,test=4', arch=ARCH, arch_args=dict(stem='small'), batch_size=32, threads=1, epochs=2, lr=3e-3, precision='fp32',
                            channels_last=False, keep_weights='none') | kw).resolve()

def state(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}

@pytest.fixture(scope='module')
def donor():
    "Weights that a library could have published: 10 other classes, ImageNet's stem."
    torch.manual_seed(1)
    return build_model(ARCH, 10, 32).state_dict()

@pytest.fixture
def server(tmp_path):
    "A folder served over HTTP, and the paths that were asked for."
    asked = []
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *a): super().__init__(*a, directory=str(tmp_path/'served'))
        def log_message(self, *a): asked.append(self.path)
    (tmp_path/'served').mkdir()
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{s.server_port}', tmp_path/'served', asked
    s.shutdown(); s.server_close()

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "torch's folder of downloads, empty."
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path/'hub'))
    return tmp_path/'hub'/'checkpoints'


# groups and heads

@pytest.mark.parametrize('arch', [*BACKBONES, 'timm:test_resnet', 'timm:test_efficientnet', 'timm:test_vit'])
def test_three_groups_in_order_and_nothing_twice(arch):
    size = 64
    with torch.device('meta'): model = build_model(arch, 7, size)
    groups = param_groups(arch, model)
    assert [id(p) for g in groups for p in g] == [id(p) for p in model.parameters()] and len(groups) == 3 and all(groups)
    assert {id(p) for p in groups[2]} == {id(p) for p in model[-1].parameters()}

@pytest.mark.parametrize('arch', [a for a in BACKBONES])
def test_the_last_stage_begins_where_the_map_shrinks(arch):
    "Its first layer halves what the early stages put out; VGG's pooling, which has no parameters, stands right before it."
    from imgcls.models import trace_shapes
    with torch.device('meta'): model = build_model(arch, 7, 128)
    calls = [(n, s) for n, _, s in trace_shapes(model, 128) if len(s) == 3 and s[1] > 1] # squeeze-and-excitation goes through one pixel
    last = last_stage(arch, model)
    inside = [s for n, s in calls if n.startswith(last + '.') or n == last]
    before = [s for n, s in calls[:next(i for i, (n, _) in enumerate(calls) if n.startswith(last + '.') or n == last)]]
    sides = [s[1] for s in before]
    if arch.startswith('vgg'): assert sides[-1]*2 == sides[-2]
    else: assert min(s[1] for s in inside)*2 == sides[-1] or min(s[1] for s in inside)*2 == sides[-2]

@pytest.mark.parametrize('arch', ['resnet18', 'vgg19_bn', 'mobilenet_v2', 'mobilenet_v3_large', 'convnext_tiny', 'timm:test_vit'])
@pytest.mark.parametrize('head', ['library', 'linear', 'fastai', [64, 32]])
def test_heads(arch, head):
    with torch.device('meta'): model = set_head(build_model(arch, 7, 64), head, 7).eval()
    assert model(torch.empty(2, 3, 64, 64, device='meta')).shape == (2, 7)
    linear = [m for m in model[-1].modules() if isinstance(m, nn.Linear)]
    if isinstance(head, list): assert [m.out_features for m in linear] == [64, 32, 7]
    if head == 'linear': assert len(linear) == 1
    if head == 'fastai': assert [m.out_features for m in linear] == [512, 7]


# weights

def test_library_keys_fit_and_only_the_last_layer_is_new(donor):
    model = build_model(ARCH, 3, 32, stem='small')
    got = put_weights(model, donor, 'x', ARCH)
    assert got['new'] == ['classifier.3.bias', 'classifier.3.weight'] and got['loaded'] == got['of'] - 2
    own = model.state_dict()
    assert all(torch.equal(own[k], donor[k]) for k in own if k not in got['new'])

def test_equal_class_counts_do_not_bring_the_old_classifier(donor):
    model = build_model(ARCH, 10, 32); put_weights(model, donor, 'x', ARCH)
    assert not torch.equal(model.state_dict()['classifier.3.weight'], donor['classifier.3.weight'])

def test_a_file_of_another_architecture_is_listed(donor, tmp_path):
    torch.save(donor, tmp_path/'w.pth')
    p = params(arch='mobilenet_v2', weights=str(tmp_path/'w.pth'))
    with pytest.raises(BadInput, match=r'not the weights of mobilenet_v2: 0 of 259 tensors fit; missing: .* more; wrong shape: .*needed') as e: learner(p)
    assert '\n' not in str(e.value)
    bad = dict(donor); bad.pop('features.2.block.0.0.weight'); bad['features.3.block.0.0.weight'] = torch.zeros(2, 2)
    with pytest.raises(BadInput, match=r'missing: features.2.block.0.0.weight; wrong shape: features.3.block.0.0.weight \(2 x 2, needed 88 x 24 x 1 x 1\)'):
        put_weights(build_model(ARCH, 3, 32), bad, 'x', ARCH)

@pytest.mark.parametrize('kind', ['pth', 'safetensors', 'wrapped'])
def test_local_files(donor, tmp_path, kind):
    f = tmp_path/('w.safetensors' if kind == 'safetensors' else 'w.pth')
    if kind == 'safetensors': save_file(donor, f)
    else: torch.save(dict(state_dict={f'module.{k}': v for k, v in donor.items()}, epoch=3) if kind == 'wrapped' else donor, f)
    learn = learner(params(weights=str(f)))
    assert torch.equal(learn.model.state_dict()['features.0.0.weight'], donor['features.0.0.weight'])
    assert learn.weights['source'].startswith(f.name) and learn.weights['loaded'] == learn.weights['of'] - 2

def test_truncated_empty_and_missing_files(donor, tmp_path):
    torch.save(donor, tmp_path/'w.pth'); save_file(donor, tmp_path/'w.safetensors')
    for name in ('w.pth', 'w.safetensors'):
        f = tmp_path/name; whole = f.read_bytes()
        for part in (whole[:len(whole)//2], whole[:20], b''):
            f.write_bytes(part)
            with pytest.raises(BadInput, match='get it again') as e: read_weights(f)
            assert '\n' not in str(e.value)
    with pytest.raises(BadInput, match='no such file'): learner(params(weights=str(tmp_path/'none.pth')))

@pytest.mark.parametrize('old', [False, True])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, old):
    class Evil:
        def __reduce__(self): return Path.touch, (tmp_path/'ran',)
    f = tmp_path/'w.pth'
    if old: f.write_bytes(pickle.dumps(dict(a=Evil())))
    else: torch.save(dict(a=Evil()), f)
    with pytest.raises(BadInput, match='refused.*nothing of it was run'): read_weights(f)
    assert not (tmp_path/'ran').exists()

def test_imagenet_by_http_in_place_of_the_download(donor, server, hub, monkeypatch):
    url, folder, asked = server
    torch.save(donor, folder/'donor.pth')
    digest = hashlib.sha256((folder/'donor.pth').read_bytes()).hexdigest()
    stats = NORMS['imagenet']
    monkeypatch.setattr(pretrained, 'imagenet_source', lambda arch: (f'{url}/donor.pth', f'donor-{digest[:8]}.pth', digest[:8], stats))
    p = params(weights='imagenet', normalize='weights')
    learn = learner(p)
    assert torch.equal(learn.model.state_dict()['features.0.0.weight'], donor['features.0.0.weight'])
    assert learn.dls.stats == learn.dls.valid.stats == stats and learn.weights['source'] == f'imagenet (donor-{digest[:8]}.pth)'
    learner(p)
    assert len(asked) == 1 and [f.name for f in hub.iterdir()] == [f'donor-{digest[:8]}.pth'] # fetched once, nothing else left
    x = learn.dls.valid.one_batch()[0]
    raw = dataloaders(p.but(normalize='none', weights='none')).valid.one_batch()[0]
    mean, std = (torch.tensor(v)[:, None, None] for v in stats)
    assert torch.allclose(x, (raw - mean)/std, atol=1e-5)

def test_a_url_is_held_against_its_checksum(donor, server, hub):
    url, folder, _ = server
    torch.save(donor, folder/'w.pth')
    digest = hashlib.sha256((folder/'w.pth').read_bytes()).hexdigest()
    assert learner(params(weights=f'{url}/w.pth#sha256={digest}')).weights['loaded'] > 200
    wrong = 'f'*64
    with pytest.raises(BadInput, match=f'SHA-256 begins with {digest[:12]}, not ffffffffffff'): learner(params(weights=f'{url}/w.pth#sha256={wrong}'))
    assert len(list(hub.iterdir())) == 1
    with pytest.raises(BadInput, match='sha256=<64 digits>'): params(weights=f'{url}/w.pth')

def test_imagenet_sources_are_the_libraries_defaults():
    for arch in BACKBONES:
        url, name, digest, stats = imagenet_source(arch)
        assert url.endswith(name) and len(digest) == 8 and stats == NORMS['imagenet']
    url, name, _, stats = imagenet_source('timm:vit_tiny_patch16_224')
    assert 'vit_tiny_patch16_224' in url and name.endswith('.safetensors') and stats == NORMS['half']

@pytest.mark.parametrize('arch', [ARCH, 'timm:test_resnet'])
@pytest.mark.parametrize('how', ['refused', 'silent'])
def test_offline_ends_at_once_with_file_and_folder(arch, how, hub, monkeypatch):
    import socket
    s = socket.socket(); s.bind(('127.0.0.1', 0))
    if how == 'silent': s.listen(1) # takes the connection and never answers
    real, port = imagenet_source(arch), s.getsockname()[1]
    monkeypatch.setattr(pretrained, 'imagenet_source', lambda arch: (f'http://127.0.0.1:{port}/w', *real[1:]))
    p = params(arch=arch, arch_args=dict(stem='small') if arch == ARCH else {}, weights='imagenet')
    model = build_model(arch, 10, 32)
    t = time.perf_counter()
    with pytest.raises(BadInput) as e: load_pretrained(model, p)
    assert time.perf_counter() - t < 10 and '\n' not in str(e.value)
    assert real[1] in str(e.value) and str(hub) in str(e.value)
    s.close()

def test_a_cut_off_download_leaves_nothing(hub):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self): self.send_response(200); self.send_header('Content-Length', '100'); self.end_headers(); self.wfile.write(b'half')
        def log_message(self, *a): pass
    s = http.server.HTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=s.serve_forever, daemon=True).start()
    with pytest.raises(BadInput): fetch(f'http://127.0.0.1:{s.server_port}/w.pth', hub/'w.pth')
    s.shutdown(); s.server_close()
    assert not list(hub.iterdir())

def test_alternatives(donor, tmp_path, hub, monkeypatch):
    monkeypatch.setattr(pretrained, 'imagenet_source', lambda arch: ('http://127.0.0.1:9/w', 'w-12345678.pth', '12345678', NORMS['imagenet']))
    torch.save(donor, tmp_path/'w.pth')
    learn = learner(params(weights=f'imagenet | {tmp_path}/w.pth'))
    assert learn.weights['source'].startswith('w.pth') and 'w-12345678.pth' in learn.weights['left_out'][0]

def test_timm_weights_and_names(tmp_path, hub):
    import timm
    torch.manual_seed(0)
    published = timm.create_model('test_vit')
    _, name, *_ = imagenet_source('timm:test_vit')
    hub.mkdir(parents=True); save_file(published.state_dict(), hub/name)
    learn = learner(params(arch='timm:test_vit', arch_args={}, weights='imagenet')) # 32 pixels: positions are fitted
    assert torch.equal(learn.model.body.blocks[0].attn.qkv.weight, published.blocks[0].attn.qkv.weight) and learn.model.head.out_features == 10
    torch.save(published.state_dict(), tmp_path/'raw.pth')
    p = params(arch='timm:test_vit', arch_args={}, weights=str(tmp_path/'raw.pth'), size=160)
    assert learner(p).weights['new'] == ['head.bias', 'head.weight']
    with pytest.raises(BadInput, match="no model 'test_vitt'; nearest: test_vit"): learner(params(arch='timm:test_vitt', arch_args={}))

def test_weights_of_a_run(tmp_path, monkeypatch):
    from imgcls.experiment import evaluate, load_run, save_record
    from imgcls.records import begin_record
    monkeypatch.setenv('IMGCLS_RESULTS', str(tmp_path)); monkeypatch.delenv('IMGCLS_RUNNER', raising=False)
    source = params(study='pretrain', run='small', dataset='synthetic-b:train=16,test=4', epochs=1, keep_weights='fp16')
    learn = learner(source); out = fit(learn, source)
    save_record(begin_record(source), learn, source, out, evaluate(learn))
    p = params(study='t', run='t', weights='run:pretrain/small', normalize='weights', epochs=1, keep_weights='fp32')
    other = learner(p)
    a, b = learn.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(a[k].half().float(), b[k].float()) for k in a if not k.startswith('classifier.3') and a[k].is_floating_point())
    assert not torch.equal(a['classifier.3.weight'].half().float(), b['classifier.3.weight'])
    assert np.allclose(other.dls.stats, learn.dls.stats) and other.weights['source'].startswith('run:pretrain/small (scratch, seed 0')
    f = tmp_path/'scratch/pretrain/small/s0/model.safetensors'
    by_file = learner(p.but(weights=str(f)))
    assert np.allclose(by_file.dls.stats, learn.dls.stats)
    done = fit(other, p); save_record(begin_record(p), other, p, done, evaluate(other))
    f.unlink()
    with pytest.raises(BadInput, match='weights are not'): learner(p)
    with pytest.raises(BadInput, match='imgcls run pretrain/none'): learner(p.but(weights='run:pretrain/none'))
    again = load_run('t/t') # needs only its own weights
    assert np.allclose(probabilities(again)[0], probabilities(other)[0], atol=1e-6) and again.dls.stats == other.dls.stats

@pytest.mark.parametrize('kw,text', [
    (dict(weights='imagnet'), "did you mean 'imagenet'"), (dict(weights='run:pretrain'), 'run:<study>/<run>'), (dict(arch='convnet', arch_args={}, weights='imagenet'), 'convnet is no backbone'),
    (dict(arch='convnet', arch_args={}, freeze='head'), 'convnet is no backbone'), (dict(schedule='fine_tune', lr=[1e-3, 1e-2]), 'give a number'), (dict(normalize='weights'), 'there are none'),
    (dict(arch='vgg19', arch_args=dict(stem='small')), "unknown key 'stem'"), (dict(arch='timm:test_vit', arch_args=dict(stem='small')), "unknown key 'stem'"), (dict(head='lienar'), "did you mean 'linear'")])
def test_bad_recipes_are_one_line(kw, text):
    with pytest.raises(BadInput, match=text) as e: params(**kw)
    assert '\n' not in str(e.value)

def test_images_too_small_for_a_backbone():
    for kw, least in ((dict(size=16, arch_args={}), 32), (dict(size=8), 16)):
        with pytest.raises(BadInput, match=f'smallest size that works is {least}'): learner(params(**kw))


# freezing

POLICIES = dict(head=(0, 1), last_stage=(0,), none=())

@pytest.mark.parametrize('policy', POLICIES)
@pytest.mark.parametrize('norms', ['keep', 'update'])
def test_frozen_tensors_do_not_change_by_a_bit_and_the_others_do(policy, norms):
    p = params(freeze=policy, frozen_norms=norms, epochs=1, opt='adamw', weight_decay=.1, select='last', cache_features=False)
    learn = learner(p); before = state(learn)
    groups = param_groups(ARCH, learn.model)
    out = fit(learn, p); after = learn.model.state_dict()
    frozen = {id(x) for i in POLICIES[policy] for x in groups[i]}
    for k, x in learn.model.named_parameters(): assert torch.equal(before[k], after[k]) == (id(x) in frozen), k
    assert out['trained'] == [sum(x.numel() for i, g in enumerate(groups) if i not in POLICIES[policy] for x in g)]
    first = 'features.0.1.running_mean' # of a norm that both frozen policies freeze
    assert torch.equal(before[first], after[first]) == (policy != 'none' and norms == 'keep')

def test_phases_thaw_and_freeze_again():
    p = params(phases=[dict(epochs=1, freeze='head'), dict(epochs=1, freeze='last_stage'), dict(epochs=1), dict(epochs=1, freeze='head')], opt='sgd', weight_decay=.1, momentum=.9, select='last')
    learn = learner(p); groups = [[*map(id, g)] for g in param_groups(ARCH, learn.model)]
    seen = []
    def look(rows, total): seen.append({k: v.detach().clone() for k, v in learn.model.named_parameters()})
    start = {k: v.detach().clone() for k, v in learn.model.named_parameters()}
    ids = {k: id(v) for k, v in learn.model.named_parameters()}
    out = fit(learn, p, on_epoch=look)
    for before, after, frozen in zip([start, *seen], seen, ((0, 1), (0,), (), (0, 1))):
        for k, i in ids.items(): assert torch.equal(before[k], after[k]) == any(i in groups[g] for g in frozen), k
    assert out['trained'][0] == out['trained'][3] < out['trained'][1] < out['trained'][2] == sum(v.numel() for v in start.values())

def test_a_policy_needs_stages(monkeypatch):
    learn = learner(params())
    monkeypatch.setattr(pretrained, 'last_stage', lambda *a: None)
    two = learner(params()); two.create_opt()
    assert len(two.opt.param_lists) == 2
    with pytest.raises(BadInput, match='allowed: none, head'): freeze(two, 'last_stage')

def test_a_killed_run_goes_on_with_the_same_numbers(tmp_path):
    p = params(schedule='fine_tune', freeze_epochs=3, epochs=2, lr=2e-3, opt='adamw', weight_decay=.05)
    whole = learner(p); out = fit(whole, p)
    for at in (2, 4):
        class Killed(Exception): pass
        def kill(rows, total):
            if len(rows) == at: raise Killed(at)
        with pytest.raises(Killed): fit(learner(p), p, tmp_path/str(at), kill)
        rest = learner(p); again = fit(rest, p, tmp_path/str(at))
        assert again['notes']['resumed_after_epoch'] == at
        assert [r['valid_loss'] for r in again['rows']] == [r['valid_loss'] for r in out['rows']]

def test_fine_tune_is_fastais_step_by_step():
    class Rates(Callback):
        order = 65
        def __init__(self): self.lrs, self.moms, self.frozen = [], [], []
        def after_step(self):
            self.lrs.append([h['lr'] for h in self.opt.hypers]); self.moms.append(self.opt.hypers[-1]['mom'])
            self.frozen.append(sum(not x.requires_grad for x in self.model.parameters()))
    p = params(schedule='fine_tune', freeze_epochs=2, epochs=3, lr=4e-3, momentum=.95, cache_features=False)
    ours, theirs = Rates(), Rates()
    learn = learner(p); learn.add_cb(ours); fit(learn, p)
    stock = learner(p); stock.add_cb(theirs)
    with stock.no_bar(), stock.no_logging(): stock.fine_tune(3, base_lr=4e-3, freeze_epochs=2)
    assert len(ours.lrs) == len(theirs.lrs) and ours.frozen == theirs.frozen and np.allclose(ours.moms, theirs.moms, rtol=1e-9)
    n = ours.frozen.index(0)
    assert np.allclose([l[-1] for l in ours.lrs[:n]], [l[-1] for l in theirs.lrs[:n]], rtol=1e-9) # frozen groups have rates that nothing uses
    assert np.allclose(ours.lrs[n:], theirs.lrs[n:], rtol=1e-9) and ours.lrs[-1][0] < ours.lrs[-1][1] < ours.lrs[-1][2]

def test_slices_spread_over_the_groups():
    p = params(lr=[1e-4, 1e-2], epochs=1, schedule='constant')
    learn = learner(p); fit(learn, p)
    assert np.allclose([h['lr'] for h in learn.opt.hypers], [1e-4, 1e-3, 1e-2])

def test_a_rate_is_found_in_each_phase_that_asks():
    p = params(phases=[dict(epochs=2, freeze='head', lr='find'), dict(epochs=1, lr='find')])
    out = fit(learner(p), p)
    assert set(out['notes']['lr_find']) == {'0', '1'} and out['notes']['features']['0']['bytes'] > 0


# features once

@pytest.mark.parametrize('kw', [dict(), dict(arch='timm:test_efficientnet', arch_args={}, opt='sgd', weight_decay=.1), dict(head=[32], precision='bf16')])
def test_features_once_gives_what_the_slow_way_gives(kw, tmp_path):
    p = params(freeze='head', epochs=3, **kw)
    outs = []
    for cache in (True, False):
        q = p.but(cache_features=cache)
        learn = learner(q); out = fit(learn, q)
        assert ('features' in out['notes']) == cache and type(learn.dls.train).__name__ == 'ResidentDL' and 'forward' not in learn.model.__dict__
        outs.append(([(r['train_loss'], r['valid_loss']) for r in out['rows']], probabilities(learn)[0], {k: v for k, v in learn.model.named_parameters()}))
    tol = dict(rtol=2e-2, atol=2e-3) if kw.get('precision') == 'bf16' else dict(rtol=1e-4, atol=1e-5)
    assert np.allclose(outs[0][0], outs[1][0], **tol) and np.allclose(outs[0][1], outs[1][1], **tol)
    for k, v in outs[0][2].items(): assert torch.allclose(v, outs[1][2][k], **tol), k

@pytest.mark.parametrize('kw', [dict(augment=['hflip']), dict(mixup=.2), dict(frozen_norms='update'), dict(freeze='last_stage'), dict(epochs=1), dict(steps_max=1)])
def test_features_are_not_kept_where_they_change_or_do_not_pay(kw):
    p = params(**dict(freeze='head', epochs=3) | kw)
    assert 'features' not in fit(learner(p), p)['notes']

def test_features_too_large_are_not_kept(monkeypatch):
    monkeypatch.setenv('IMGCLS_RESIDENT_MB', '0')
    p = params(freeze='head', epochs=2)
    assert 'features' not in fit(learner(p), p)['notes']
