"Training keeps its promises: the same numbers again, after a kill, and a loss that blows up is a result."
import dataclasses, json, math, os, subprocess, sys
from pathlib import Path

import numpy as np, pytest, torch

from imgcls.loaders import dataloaders
from imgcls.params import BadInput, make_params
from imgcls.training import (EMA, Loss, Muon, PairedOptim, fit, find_lr, learner, load_weights, lr_at, phases_of, probabilities, read_checkpoint, save_weights)

def params(**kw):
    return make_params(dict(dataset='digits', size=16, train_limit=30, batch_size=32, threads=1, epochs=3, lr=3e-3, keep_weights='none') | kw).resolve()

def losses(result): return [(r['train_loss'], r['valid_loss']) for r in result['rows']]

@pytest.mark.parametrize('kw', [dict(), dict(opt='sgd', schedule='plateau', augment=['hflip', 'crop'], momentum=.8), dict(opt='adamw', weight_decay=.1, ema=.9, grad_clip=1.),
                                dict(opt='muon', lr=.02, schedule='cosine', label_smoothing=.1)])
def test_same_numbers_again_and_after_a_kill(kw, tmp_path):
    p = params(**kw)
    whole = learner(p); out = fit(whole, p)
    class Killed(Exception): pass
    def kill(rows, total):
        if len(rows) == 2: raise Killed('here')
    with pytest.raises(Killed): fit(learner(p), p, tmp_path, kill)
    state = json.loads((tmp_path/'checkpoint.json').read_text()); state['spent'] += 1000; (tmp_path/'checkpoint.json').write_text(json.dumps(state))
    rest = learner(p); resumed = fit(rest, p, tmp_path)
    assert resumed['notes']['resumed_after_epoch'] == 2 and 1000 < resumed['total_seconds'] < 1000 + 60 + 10*out['total_seconds'] # of all stretches
    assert losses(resumed) == losses(out)
    assert np.array_equal(probabilities(rest)[0], probabilities(whole)[0])

def test_a_lean_loop_computes_the_same():
    "Callbacks asked for fewer events, nothing logged: the same numbers, bit for bit."
    kw = dict(epochs=2, opt='sgd', momentum=.8, schedule='one_cycle', augment=['hflip', 'crop'], ema=.9, grad_clip=1., precision='bf16')
    lean, full = (learner(params(lean=on, **kw)) for on in (True, False))
    assert losses(fit(lean, params(**kw))) == losses(fit(full, params(lean=False, **kw)))
    assert np.array_equal(probabilities(lean)[0], probabilities(full)[0])

def test_a_lean_loop_casts_and_moves_what_it_must():
    from fastai.torch_core import TensorBase
    from fastai.vision.core import TensorImage
    learn, seen = learner(params(epochs=1)), set()
    x, y = learn.dls.train.one_batch()
    assert all(a is b for a, b in zip(learn._set_device((x, y)), (x, y)))
    learn.model.register_forward_pre_hook(lambda m, args: seen.add(type(args[0])))
    def look(dl): dl.__class__ = type('Subclasses', (type(dl),), dict(make=lambda self, *args: tuple(TensorImage(t) for t in super(type(self), self).make(*args))))
    look(learn.dls.train); look(learn.dls.valid)
    assert isinstance(learn.dls.train.one_batch()[0], TensorBase)
    fit(learn, params(epochs=1)); assert seen == {torch.Tensor}
    learn.model.to('meta'); assert {t.device.type for t in learn._set_device((x, y))} == {'meta'}

def test_seeds_differ():
    assert losses(fit(learner(params()), params())) != losses(fit(learner(params(seed=1)), params(seed=1)))

def test_a_spoilt_checkpoint_starts_anew(tmp_path, capsys):
    p = params(epochs=2)
    out = fit(learner(p), p, tmp_path)
    f = next(tmp_path.glob('checkpoint.*.safetensors')); f.write_bytes(f.read_bytes()[:100])
    assert read_checkpoint(tmp_path) is None and 'starting anew' in capsys.readouterr().out
    again = fit(learner(p), p, tmp_path)
    assert 'resumed_after_epoch' not in again['notes'] and losses(again) == losses(out)

def test_another_runs_checkpoint_is_left_alone(tmp_path):
    p, q = params(epochs=1), params(epochs=1, seed=5)
    fit(learner(p), p, tmp_path)
    assert 'resumed_after_epoch' not in fit(learner(q), q, tmp_path)['notes']

def test_divergence_is_a_result():
    p = params(opt='sgd', lr=1e6, schedule='constant', precision='fp32', arch_args=dict(act='relu'))
    learn = learner(p); out = fit(learn, p)
    assert out['status'] == 'diverged' and out['notes']['diverged_at_step'] >= 0
    probs, targets = probabilities(learn)
    assert np.isfinite(probs).all() and abs((probs.argmax(1) == targets).mean() - .1) < .08

def test_phases_share_a_history_and_a_clock():
    p = params(phases=[dict(epochs=1, lr=1e-4, augment=['hflip']), dict(epochs=2)], epochs=9)
    assert [(ph.epochs, ph.lr) for ph in phases_of(p)] == [(1, 1e-4), (2, 3e-3)]
    rows = fit(learner(p), p)['rows']
    assert [(r['epoch'], r['phase']) for r in rows] == [(1, 0), (2, 1), (3, 1)]

def test_patience_and_selection():
    p = params(epochs=12, patience=1, lr=.3, opt='sgd', schedule='constant', precision='fp32')
    learn = learner(p); out = fit(learn, p)
    accs = [r['valid_accuracy'] for r in out['rows']]
    assert len(accs) < 12 and out['best_epoch'] == 1 + int(np.argmax(accs))
    probs, t = probabilities(learn)
    assert (probs.argmax(1) == t).mean() == pytest.approx(max(accs))

def test_steps_max():
    p = params(steps_max=2, epochs=1)
    seen = []
    learn = learner(p)
    from fastai.callback.core import Callback
    class Count(Callback):
        def after_step(self): seen.append(1)
    learn.add_cb(Count()); fit(learn, p)
    assert len(seen) == 2

def test_plateau_drops_the_rate():
    p = params(schedule='plateau', plateau_patience=0, opt='sgd', lr=1e-8, epochs=4, precision='fp32')
    lrs = [r['lr'] for r in fit(learner(p), p)['rows']]
    assert lrs[0] == pytest.approx(1e-8) and lrs[-1] < lrs[0]

def test_weight_decay_leaves_norms_and_biases_alone():
    m = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    opt = PairedOptim([list(m[:2].parameters()), list(m[2].parameters())], torch.optim.SGD, lr=.1)
    opt.set_hypers(wd=.5, lr=[.1, .2])
    assert len(opt.hypers) == 2 and [h['lr'] for h in opt.hypers] == [.1, .2]
    for g in opt.opt.param_groups:
        for p in g['params']: assert g['weight_decay'] == (.5 if p.ndim > 1 else 0)
    opt.freeze()
    assert [p.requires_grad for p in m.parameters()] == [False]*4 + [True]*2

def test_lr_find_leaves_the_weights_alone():
    p = params(); learn = learner(p)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    found = find_lr(learn)
    assert 1e-7 < found['suggestion'] < 10 and len(found['lrs']) == len(found['losses'])
    assert all(torch.equal(before[k], v) for k, v in learn.model.state_dict().items())
    q = params(lr='find', epochs=1)
    assert 'lr_find' in fit(learner(q), q)['notes']

def test_a_plain_fastai_learner():
    learn = learner(params())
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1); learn.fit_one_cycle(1)
    from fastai.interpret import Interpretation
    probs, targets = learn.get_preds()
    assert probs.shape == (len(targets), 10) and torch.allclose(probs.sum(1), torch.ones(len(probs)), atol=1e-3)
    assert Interpretation.from_learner(learn).losses.ndim == 1

def test_fast_resnet_sees_whitened_images_and_learns():
    p = params(arch='fast_resnet', arch_args={}, size=32, epochs=2, lr=5e-3)
    learn = learner(p); stem = {k: v.clone() for k, v in learn.model.named_buffers()}
    rows = fit(learn, p)['rows']
    assert rows[-1]['train_loss'] < rows[0]['train_loss']
    frozen = [k for k, v in learn.model.named_buffers() if v.ndim == 4]
    assert frozen and all(torch.equal(stem[k], dict(learn.model.named_buffers())[k]) for k in frozen)
    x = learn.dls.train.new(shuffle=False, drop_last=False, bs=256).one_batch()[0]
    y = torch.nn.functional.conv2d(x.float(), stem[frozen[0]]).flatten(2).transpose(0, 1).flatten(1)
    cov = torch.cov(y[: y.shape[0]//2])
    assert cov.diag().min() > 0 and (cov - cov.diag().diag()).abs().max() < .5*cov.diag().max()    # far from the raw patches, whose channels go together

def test_weights_round_trip_and_mismatch(tmp_path):
    p = params(epochs=1); learn = learner(p)
    save_weights(learn, tmp_path/'w.safetensors')
    other = learner(p.but(seed=3)); load_weights(other, tmp_path/'w.safetensors')
    assert all(torch.equal(a, b) for a, b in zip(learn.model.state_dict().values(), other.model.state_dict().values()))
    wrong = learner(p.but(arch_args=dict(filters=[8, 8])))
    with pytest.raises(BadInput, match='not the weights of convnet'): load_weights(wrong, tmp_path/'w.safetensors')
    with pytest.raises(BadInput, match='no weights'): load_weights(wrong, tmp_path/'none.safetensors')

def test_test_split_is_never_read_while_training():
    p = params(epochs=1); dls = dataloaders(p)
    class Guard:
        def __getattr__(self, k): raise AssertionError('the test split was read')
        def __iter__(self): raise AssertionError('the test split was read')
    dls.loaders[2] = Guard()
    fit(learner(p, dls), p)

def _killed_after(p, dls, folder, epoch=1):
    class Killed(Exception): pass
    def stop(rows, total):
        if len(rows) == epoch: raise Killed('now')
    with pytest.raises(Killed): fit(learner(p, dls), p, folder, stop)

def test_a_checkpoint_of_other_images_is_left_alone(tmp_path):
    p = params(); dls = dataloaders(p)
    _killed_after(p, dls, tmp_path)
    dls.splits = dataclasses.replace(dls.splits, fingerprint="others")
    assert 'resumed_after_epoch' not in fit(learner(p, dls), p, tmp_path)['notes']

def test_a_phase_waits_for_itself_and_a_resume_waits_no_longer(tmp_path):
    two = [dict(epochs=2, lr=3e-3), dict(epochs=6, lr=1e-12, patience=2, schedule='constant')]
    p = params(phases=two); dls = dataloaders(p)
    whole = fit(learner(p, dls), p)['rows']
    assert max(r['phase'] for r in whole) == 1 and sum(r['phase'] for r in whole) >= 2 # though nothing gets better
    _killed_after(p, dls, tmp_path, epoch=3)
    assert len(fit(learner(p, dls), p, tmp_path)['rows']) == len(whole)

def test_a_phase_trains_at_its_own_size_and_is_judged_at_the_runs():
    p = params(arch='simple', size=16, phases=[dict(epochs=1, size=12), dict(epochs=1)]); learn, seen = learner(p), []
    learn.model.register_forward_pre_hook(lambda m, x: seen.append((m.training, x[0].shape[-1])))
    fit(learn, p)
    assert set(seen) == {(True, 12), (False, 16), (True, 16)} and seen[0] == (True, 12)
    with pytest.raises(BadInput, match='phases: size 12: convnet flattens'): learner(params(phases=[dict(epochs=1, size=12)]))

def test_the_whitened_stem_sees_all_classes(monkeypatch):
    from imgcls import training
    p = params(arch='fast_resnet', size=32, arch_args={}, train_limit=None); dls, got = dataloaders(p), []
    real = training.init_whitening
    monkeypatch.setattr(training, 'init_whitening', lambda m, x: got.append(len(x)) or real(m, x))
    a, b = (learner(p, dls).model.stem.conv.weight for _ in range(2))
    assert got == [len(dls.train.dataset)]*2 and got[0] > 512 # images lie class by class: the first few hundred are of few classes
    assert torch.equal(a, b)
