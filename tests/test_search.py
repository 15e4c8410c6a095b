"Searches: what is drawn, who is stopped, what an interruption changes (nothing), how rounds narrow, and what is refused before anything is trained."
import contextlib, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace

import optuna, pandas as pd, pytest, yaml

from imgcls import cli, runner, search
from imgcls.loaders import ResidentDL
from imgcls.params import BadInput, load_params, load_study, make_params, parameters_cell, read_settings, trial_params
from imgcls.records import begin_record, read_record, run_dir, verify_record
from imgcls.search import best_run, distributions, draw, narrowed, ranked, read_trials, run_search, save_search, space_of, stops
from imgcls.training import fit, learner

ROOT = Path(__file__).resolve().parent.parent
SPACE = {'lr': dict(log=[1e-4, 1]), 'momentum': dict(uniform=[.1, .99]), 'arch_args.filters': dict(rising=[8, 16, 32], length=2)}
SMALL = dict(study='s', run='a', template='search', dataset='digits', size=16, train_limit=20, batch_size=32, threads=1, precision='fp32', opt='sgd', schedule='constant', arch='simple', epochs=9, trials=12, space=SPACE)

def params(**kw): return make_params(SMALL | kw).resolve()
def drawn(p, n=50, tell=None):
    "Settings of `n` trials; `tell` gives their values to the sampler."
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, out = optuna.create_study(direction='maximize'), []
    for _ in range(n):
        trial = study.ask(); out.append(draw(trial, p, p.space))
        if tell: study.tell(trial, tell(out[-1]))
    return out


# ---- drawing

def test_draws_keep_to_their_ranges_and_lists_do_not_fall():
    p = params(trials=300, space=SPACE | {'batch_size': dict(int=[16, 18]), 'opt': dict(choice=['sgd', 'adam']), 'augment': dict(choice=[[], ['hflip']]), 'arch_args.kernel': 3})
    d = pd.DataFrame(drawn(p, 300))
    assert d.lr.between(1e-4, 1).all() and d.momentum.between(.1, .99).all() and set(d.batch_size) == {16, 17, 18} and set(d.opt) == {'sgd', 'adam'} and set(d['arch_args.kernel']) == {3}
    assert .4 < (d.lr < 1e-2).mean() < .6 # as likely in every decade
    lists = d['arch_args.filters'].map(tuple).value_counts()
    assert set(lists.index) == {(8, 8), (8, 16), (8, 32), (16, 16), (16, 32), (32, 32)} and lists.min() > 25 and {str(x) for x in d.augment} == {'[]', "['hflip']"}
    assert d.lr.corr(d.momentum) < .2 # seeds of one trial are seeds of each parameter

def test_lists_of_whole_numbers_and_choices():
    s = {'arch_args.blocks': dict(int=[1, 5], length=3), 'arch_args.strides': dict(choice=[1, 2, 3], length=3), 'arch_args.filters': dict(rising=[64, 128, 256, 512], length=3)}
    for d in drawn(params(arch='group_resnet', space=s)):
        assert len(d['arch_args.blocks']) == len(d['arch_args.strides']) == 3 and set(d['arch_args.blocks']) <= {1, 2, 3, 4, 5} and set(d['arch_args.strides']) <= {1, 2, 3} and d['arch_args.filters'] == sorted(d['arch_args.filters'])

@pytest.mark.parametrize('sampler', ['random', 'tpe'])
def test_the_seed_decides(sampler):
    good = lambda d: -abs(d['lr'] - .01) - abs(d['momentum'] - .5)
    a, b, c = (drawn(params(sampler=sampler, seed=s), 15, good) for s in (0, 0, 1))
    assert a == b and all(x != y for x, y in zip(a, c))

def test_tpe_learns_and_begins_as_random_does():
    good = lambda d: -abs(d['momentum'] - .3)
    far = lambda s: pd.Series([abs(d['momentum'] - .3) for d in drawn(params(sampler=s, trials=40), 40, good)])
    assert far('tpe')[15:].mean() < .6*far('random')[15:].mean()
    assert drawn(params(sampler='tpe'), 4, good) == drawn(params(), 4, good)

def test_a_narrower_range_changes_no_other_draw():
    wide, narrow = drawn(params(), 20), drawn(params(space=SPACE | dict(lr=dict(log=[1e-3, 1e-2]))), 20)
    assert [(d['momentum'], d['arch_args.filters']) for d in wide] == [(d['momentum'], d['arch_args.filters']) for d in narrow]
    assert all(1e-3 <= d['lr'] <= 1e-2 for d in narrow)


# ---- trials, with a training that takes no time: an accuracy for each rate and epoch

class Power(BaseException): "goes out"

def numbers(q, e): return dict(epoch=e, phase=0, lr=q.lr, train_loss=1., train_accuracy=.5, valid_loss=1., valid_accuracy=round(min(.99, q.lr**.25*(1 - .5**e)*q.momentum**.1), 6), seconds=1.)

@pytest.fixture
def quick_fit(monkeypatch):
    "Training replaced; `out_at` cuts the power at the n-th epoch in all, before or after its checkpoint, or between its end and its report."
    state = dict(epochs=0, out_at=None, where='after', diverges=lambda q: False, images='a')
    class Dls: c = 10
    def fake_fit(learn, q, checkpoint=None, on_epoch=None):
        f = Path(checkpoint)/f"c.{state['images']}.json"; rows = json.loads(f.read_text()) if f.exists() else []
        for e in range(len(rows) + 1, q.epochs + 1):
            state['epochs'] += 1
            cut = state['epochs'] == state['out_at']
            if cut and state['where'] == 'before': raise Power()
            if state['diverges'](q) and e == 3: return dict(rows=rows, status='diverged')
            rows.append(numbers(q, e))
            f.parent.mkdir(exist_ok=True, parents=True); f.write_text(json.dumps(rows))
            if cut and state['where'] == 'between': raise Power()
            on_epoch(rows, q.epochs)
            if cut: raise Power()
        return dict(rows=rows, status='done')
    monkeypatch.setattr(search, 'fit', fake_fit); monkeypatch.setattr(search, 'learner', lambda q, dls: None); monkeypatch.setattr(search, 'prepare_data', lambda q: (0, SimpleNamespace(fingerprint=state['images']))); monkeypatch.setattr(search, 'dataloaders', lambda q, *a: Dls)
    class Any: # whatever the key is: that a checkpoint is its own run's is a matter of the training room
        def __eq__(self, other): return True
    monkeypatch.setattr(search, 'read_checkpoint', lambda here: next(((dict(rows=json.loads(f.read_text()), key=Any(), data=f.name.split('.')[1]), {}) for f in here.glob('c.*.json')), None))
    return state

@pytest.mark.parametrize('pruner, sampler, where', [('none', 'random', 'after'), ('halving', 'random', 'before'), ('halving', 'random', 'between'), ('halving', 'tpe', 'after')])
def test_the_power_goes_out_and_the_trials_are_the_same(quick_fit, tmp_path, pruner, sampler, where):
    (tmp_path/'a').mkdir()
    p = params(pruner=pruner, sampler=sampler, trials=6, epochs=4)
    whole = run_search(p, tmp_path/'a', 1)
    total = quick_fit['epochs']
    for at in (2, total - 1):
        folder = tmp_path/f'{at}'; folder.mkdir()
        quick_fit.update(epochs=0, out_at=at, where=where)
        with contextlib.suppress(Power): run_search(p, folder, 1)
        assert quick_fit['epochs'] >= at
        quick_fit['out_at'] = None
        again = run_search(p, folder, 1)
        pd.testing.assert_frame_equal(again.trials, whole.trials); pd.testing.assert_frame_equal(again.history, whole.history)
        assert quick_fit['epochs'] <= total + 1 and not list(folder.glob('trial[0-9]*')) # at most the epoch that was cut is spent twice

def test_halving_spends_a_third_and_keeps_the_best_third_of_those_who_came(quick_fit, tmp_path):
    for n in 'ab': (tmp_path/n).mkdir()
    p = params(trials=24, seed=3)
    all_, some = run_search(p, tmp_path/'a', 1), run_search(p.but(pruner='halving'), tmp_path/'b', 1)
    t = some.trials
    assert t.epochs.sum() < .4*all_.trials.epochs.sum() and set(t.epochs) == {1, 3, 9} and set(t.state) == {'done', 'stopped'}
    assert [tuple(x) for x in t['arch_args.filters']] == [tuple(x) for x in all_.trials['arch_args.filters']] # the same draws
    first = some.history[some.history.epoch == 1].valid_accuracy.tolist()
    assert [s for s in t.epochs > 1] == [not stops(first[i], first[:i]) for i in range(24)]
    assert some.best['trial'] == all_.best['trial']
    assert set(ranked(t).state) == {'done'}

def test_a_trial_that_diverges_counts_at_chance_and_costs_no_more(quick_fit, tmp_path):
    quick_fit['diverges'] = lambda q: q.lr > .05
    s = run_search(params(trials=10), tmp_path, 1)
    bad, good = s.trials[s.trials.lr > .05], s.trials[s.trials.lr <= .05]
    assert len(bad) and set(bad.state) == {'diverged'} and set(bad.max_valid_accuracy) == {.1} and set(bad.epochs) == {3} and bad.best_epoch.isna().all()
    assert set(good.state) == {'done'} and set(good.epochs) == {9} and s.best['lr'] <= .05
    values = {t.number: t.value for t in search.open_search(s.p, tmp_path, 'a').get_trials()}
    assert all(values[n] == .1 for n in bad.trial) # and the sampler is told so

def test_a_setting_that_cannot_be_trained_fails_alone(quick_fit, tmp_path, monkeypatch):
    real = search.fit
    def fails(learn, q, **kw):
        if q.lr > .05: raise RuntimeError('out of\nmemory')
        return real(learn, q, **kw)
    monkeypatch.setattr(search, 'fit', fails)
    s = run_search(params(trials=10), tmp_path, 1)
    assert set(s.trials[s.trials.lr > .05].error) == {'RuntimeError: out of memory'} and set(s.trials[s.trials.lr <= .05].state) == {'done'}
    monkeypatch.setattr(search, 'fit', lambda *a, **k: fails(None, params().model_copy(update=dict(lr=.5))))
    (tmp_path/'b').mkdir()
    with pytest.raises(BadInput, match='none of its 10 trials came to its end: RuntimeError: out of memory'): run_search(params(trials=10), tmp_path/'b', 1)

def test_machines_share_a_database_and_one_that_falls_silent_is_replaced(quick_fit, tmp_path, monkeypatch):
    for n in 'abc': (tmp_path/n).mkdir()
    p = params(trials=6, storage=f'sqlite:///{tmp_path}/shared.db')
    alone = run_search(p.but(storage=None), tmp_path/'c', 1)
    quick_fit.update(epochs=0, out_at=9*2 + 4)
    with pytest.raises(Power): run_search(p, tmp_path/'a', 1) # two trials and a part of the third
    quick_fit['out_at'] = None; monkeypatch.setattr(search, 'GRACE', .2)
    other = run_search(p, tmp_path/'b', 1)
    assert quick_fit['epochs'] == 9*2 + 4 + 9*4 # the third once more, from its beginning: its checkpoint is on the other machine
    pd.testing.assert_frame_equal(other.trials, alone.trials)
    pd.testing.assert_frame_equal(run_search(p, tmp_path/'a', 1).trials, alone.trials) # nothing left to do, the same record


# ---- real trainings, on the digits

def test_a_trial_is_an_ordinary_training_and_reads_no_test(tmp_path, monkeypatch):
    read, real = [], ResidentDL.__iter__
    monkeypatch.setattr(ResidentDL, '__iter__', lambda self: (read.append(self), real(self))[1])
    p = params(trials=2, epochs=2, seed=1)
    s = run_search(p, tmp_path, 1)
    row = s.trials.iloc[1]
    q = trial_params(p, {k: row[k] for k in s.names})
    assert q.template == 'train' and not q.evaluate_test
    learn = learner(q)
    rows = pd.DataFrame(fit(learn, q)['rows'])
    pd.testing.assert_frame_equal(s.history[s.history.trial == 1].drop(columns=['trial', 'seconds']).reset_index(drop=True), rows.drop(columns='seconds'))
    test = len(learn.dls.test.dataset)
    assert read and test not in {len(d.dataset) for d in read} and len({test, len(learn.dls.train.dataset), len(learn.dls.valid.dataset)}) == 3

def test_a_real_divergence_ends_at_once(tmp_path):
    s = run_search(params(trials=2, epochs=3, settings=str(settings(tmp_path, 'lr,filters\n1e30,8-8\n0.05,8-16\n')), space={}), tmp_path, 1)
    assert s.trials.state.tolist() == ['diverged', 'done'] and s.trials.epochs.tolist() == [1, 3] and s.trials.max_valid_accuracy[0] == .1


# ---- settings from a table

def settings(folder, text):
    f = folder/'settings.csv'; f.write_text(text)
    return f

def test_a_table_of_settings_is_trained_as_it_is(quick_fit, tmp_path):
    f = settings(tmp_path, 'filters,lr,momentum,max_valid_acc\n' + ''.join(f'8-16,{i/100},0.5,{i}\n' for i in range(1, 8)))
    p = params(space={}, settings=str(f), trials=7)
    assert run_search(p, tmp_path, 1).trials.lr.tolist() == [i/100 for i in range(1, 8)]
    assert [d['lr'] for d in read_settings(p.but(trials=3))] == [.01, .04, .07] # evenly spread
    assert read_settings(p)[0]['arch_args.filters'] == [8, 16]

def test_a_short_table_leaves_the_record_that_was_asked_for(quick_fit, tmp_path):
    p = params(space={}, settings=str(settings(tmp_path, 'lr\n.1\n.2\n.3\n')), trials=20)
    s = run_search(p, tmp_path, 1)
    assert len(s.trials) == 3 and s.p.key == p.key

def test_a_null_that_wins_stays_a_null(quick_fit, tmp_path):
    p = params(space=dict(lr=dict(log=[1e-3, .1]), grad_clip=dict(choice=[None, 1.])), trials=8)
    s = run_search(p, tmp_path, 1)
    assert set(s.trials.grad_clip) == {None, 1.} and all(trial_params(p, {k: row[k] for k in s.names}).grad_clip == row['grad_clip'] for row in s.trials.to_dict('records'))
    s.trials.map(lambda v: json.dumps(v) if isinstance(v, (list, dict)) else v).to_csv(tmp_path/'trials.csv', index=False)
    assert [x is None for x in read_trials(tmp_path).grad_clip] == [x is None for x in s.trials.grad_clip]

def test_the_published_settings_are_replayed():
    study = load_study('generated100_search')
    for run in [r for r in study.runs if r.startswith('replay_')]:
        p = load_params(f'generated100_search/{run}')
        other = load_params(f"generated100_search/{run.removeprefix('replay_')}")
        d = read_settings(p)
        assert len(d) == p.trials == other.trials and set(d[0]) == set(other.space) and (p.arch, p.opt, p.lr if 'lr' not in d[0] else 0, p.epochs) == (other.arch, other.opt, other.lr if 'lr' not in d[0] else 0, 15)
        assert f'replay_{p.settings}' in p.settings or Path(p.settings).parent.name == 'published'


# ---- rounds, records, files; a project of its own

@pytest.fixture
def project(tmp_path, monkeypatch):
    put = lambda name, text: ((tmp_path/name).parent.mkdir(parents=True, exist_ok=True), (tmp_path/name).write_text(text))
    put('params/profiles/quick.yaml', 'profile: quick\ntrials_factor: 1\n')
    put('params/s/a.yaml', yaml.safe_dump({k: v for k, v in SMALL.items() if k not in ('study', 'run', 'template')} | dict(epochs=2, trials=5)))
    put('params/s/b.yaml', yaml.safe_dump({k: v for k, v in SMALL.items() if k not in ('study', 'run', 'template')} | dict(after='s/a', best=2, space=SPACE | dict(lr='narrow', momentum=.5))))
    put('params/s/study.yaml', 'question: Which?\ntemplate: search\nruns: [a, b]\n')
    shutil.copytree(ROOT/'nbs/experiments', tmp_path/'nbs/experiments')
    for k, v in dict(IMGCLS_PROJECT=tmp_path, IMGCLS_RESULTS=tmp_path/'results', IMGCLS_CACHE=tmp_path/'cache', OMP_NUM_THREADS=1).items(): monkeypatch.setenv(k, str(v))
    monkeypatch.delenv('IMGCLS_SLOTS', raising=False); monkeypatch.chdir(tmp_path)
    return tmp_path, put

def test_killed_it_goes_on_under_the_runner_with_two_at_a_time_and_ends_as_one_process_does(project):
    tmp, put = project
    put('params/s/a.yaml', (tmp/'params/s/a.yaml').read_text().replace('epochs: 2', 'epochs: 6'))
    code = "import time; from imgcls.params import load_params; from imgcls.records import begin_record; from imgcls.search import run_search; p = load_params('s/a', 'quick').resolve(); run_search(p, begin_record(p), 1, lambda n, rows: n and time.sleep(600))"
    left = tmp/'results/quick/s/a/s0.tmp'
    first = subprocess.Popen([sys.executable, '-c', code], env=os.environ | dict(PYTHONPATH=str(ROOT)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (left/'trial1/checkpoint.json').exists() and first.poll() is None: time.sleep(.01)
    first.send_signal(signal.SIGKILL); first.wait()
    assert (left/'trial1/checkpoint.json').exists() and runner.status(['s/a'])[0]['state'] == 'interrupted'
    out = runner.run(runner.plan(['s/a']), jobs=2, kernel='plain') # one search and two slots
    assert out.status == 0, out.failed
    folder = tmp/'results/quick/s/a/s0'
    record, got = verify_record(folder), read_trials(folder)
    assert record.notes['workers'] == 2 and record.notebook == 'run.ipynb' and record.metrics['valid']['accuracy'] == got.max_valid_accuracy.max() and not list(folder.glob('trial[0-9]*'))
    (tmp/'one').mkdir()
    one = run_search(load_params('s/a', 'quick').resolve(), tmp/'one', 1).trials # random: who trains them makes no difference
    pd.testing.assert_frame_equal(got.drop(columns=['seconds', 'error']), one.drop(columns=['seconds', 'error']), check_dtype=False)
    (folder/'trials.db').unlink(); verify_record(folder) # git does not keep it
    assert not runner.plan(['s/a']).todo

def test_a_round_takes_the_range_of_the_best(project):
    tmp, put = project
    p = load_params('s/a', 'quick', epochs=1).resolve()
    folder = begin_record(p); s = run_search(p, folder, 1); save_search(folder, s)
    q = load_params('s/b', 'quick')
    top = ranked(s.trials).head(2).lr
    assert space_of(q)['lr'] == dict(log=[top.min(), top.max()]) and space_of(q)['momentum'] == .5 and space_of(q)['arch_args.filters'] == SPACE['arch_args.filters']
    assert space_of(q.but(best=1))['lr'] == s.best['lr']
    assert runner.dependencies(q, 'quick') == [('s/a', 0)]
    put('params/s/a.yaml', (tmp/'params/s/a.yaml').read_text().replace('epochs: 2', 'epochs: 1'))
    plan = runner.plan(['s'])
    assert [(j.id, j.todo) for j in plan.jobs] == [('s/a/s0', False), ('s/b/s0', True)]

    # what another round finds, another narrowing: the digest is of the trials
    done = run_dir('quick', 's', 'a', 0); before = runner.record_digest(read_record(done))
    d = json.loads((done/'record.json').read_text()); d['files']['trials.csv'] = 'other'; (done/'record.json').write_text(json.dumps(d))
    assert runner.record_digest(read_record(done)) != before

    # the best is trained in full as an ordinary run that names its trial
    d['files']['trials.csv'] = 'x'
    put('params/full/best.yaml', best_run('s/a', to='full/best', epochs=7)); put('params/full/study.yaml', 'question: And in full?\nruns: [best]\n')
    full, best = load_params('full/best', 'quick').resolve(), s.best
    assert (full.template, full.trial, full.epochs) == ('train', f"s/a/s0/{best['trial']}", 7) and full.evaluate_test and full.keep_weights == 'fp32'
    assert full.but(epochs=1, evaluate_test=False, keep_weights='none').key == trial_params(p, {k: best[k] for k in s.names}).key and full.but(trial='other/x/s0/1').key == full.key
    assert [j.id for j in runner.plan(['full']).jobs] == ['full/best/s0']
    other = int(ranked(s.trials).iloc[-1]['trial'])
    assert f'trial: s/a/s0/{other}' in best_run('s/a', trial=other)
    for kw, says in ((dict(trial=99), 'has no trial 99'), (dict(profile='cpu'), 'make it with: imgcls run s/a'), (dict(seed=3), 'no record of seed 3')):
        with pytest.raises(BadInput, match=says): best_run('s/a', **kw)
    assert cli.main(['best', 's/a', '-o', str(tmp/'params/full/again.yaml')]) == 0 and load_params('full/again').trial == full.trial


def test_spare_slots_are_trials_at_a_time(): assert runner._kernel_env(dict(env={}, spare=3))['IMGCLS_SLOTS'] == '3'

def test_a_spoilt_file_of_trials_is_begun_anew(quick_fit, tmp_path):
    p = params(trials=2); s = run_search(p, tmp_path, 1)
    (tmp_path/'trials.db').write_bytes(b'spoilt'*100)
    pd.testing.assert_frame_equal(run_search(p, tmp_path, 1).trials, s.trials)

def test_other_images_do_not_go_on_with_a_search(quick_fit, tmp_path):
    p = params(trials=3); quick_fit['out_at'] = 12
    with pytest.raises(Power): run_search(p, tmp_path, 1)
    quick_fit.update(out_at=None, images='b')
    spent = quick_fit['epochs']
    other = run_search(p, tmp_path, 1)
    assert set(other.trials.state) == {'done'} and quick_fit['epochs'] == spent + 3*p.epochs # from the beginning
    quick_fit['images'] = 'a'
    assert set(run_search(p, tmp_path, 1).trials.state) == {'done'} and quick_fit['epochs'] == spent + 5*p.epochs # put back, they go on with theirs, whose first trial had ended

def test_the_narrowing_rule():
    assert narrowed(dict(uniform=[0, 1]), [.4, .2, .3]) == dict(uniform=[.2, .4])
    assert narrowed(dict(int=[1, 9]), [3, 3]) == 3
    assert narrowed(dict(choice=['a', 'b', 'c']), ['c', 'a']) == dict(choice=['a', 'c']) # in the order of the range
    assert narrowed(dict(choice=[1, 2, 3], length=2), [[1, 3], [1, 1]]) == dict(choice=[1, 3], length=2)
    assert narrowed(.5, [.5, .5]) == .5


# ---- what is refused, in one line, with status 2, before anything starts

BAD = [
    (dict(space={}), 'space: nothing to search'), (dict(space=dict(lr=.1)), 'no parameter has a range'),
    (dict(space=dict(lr=dict(log=[.1, .1]))), 'lr: log: [0.1, 0.1] is empty'), (dict(space=dict(lr=dict(uniform=[1, .1]))), 'is reversed; low must be below high'),
    (dict(space=dict(lr=dict(log=[-1, 1]))), 'goes through zero'), (dict(space=dict(lr=dict(log=[0, 1]))), 'goes through zero'),
    (dict(space=dict(learning_rate=dict(log=[.1, 1]))), "learning_rate is no parameter (did you mean 'lr'?)"), (dict(space=dict(epochs=dict(int=[1, 5]))), 'epochs cannot be searched'),
    ({'space': {'arch_args.dropout': dict(uniform=[0, .5])}}, 'simple has no such argument; it has: filters, kernel'), ({'space': {'arch_args.filter': dict(rising=[1, 2], length=2)}}, "did you mean 'filters'?"),
    ({'space': {'arch_args.filters': dict(rising=[2, 1], length=2)}}, 'rising order'), ({'space': {'arch_args.filters': dict(rising=[1, 2])}}, 'a length is needed'), ({'space': {'arch_args.filters': dict(rising=list(range(1, 30)), length=20)}}, 'lists to draw from'),
    (dict(space=dict(lr=dict(logg=[.1, 1]))), "did you mean 'log'?"), (dict(space=dict(lr=dict(log=[.1, 1, 2]))), '[low, high] above 0'), (dict(space=dict(lr=dict(log=[.1, True]))), '[low, high] above 0'), (dict(space=dict(opt=dict(choice=[]))), 'is empty'),
    (dict(space=dict(opt=dict(choice=['sgd', 'sdg']))), "did you mean 'sgd'?"), (dict(space=dict(momentum=dict(uniform=[.5, 1.5]))), 'momentum: 1.5 is not allowed'), (dict(space=dict(lr=dict(uniform=[.1, 1], length=2))), 'uniform takes no length'),
    (dict(space=dict(lr='narrow')), 'narrow: of which round?'), (dict(after='s/zero', space=dict(lr='narrow')), 'no such run in s'), (dict(after='s/a'), "no range of space is 'narrow'"), (dict(after='s/a', space=dict(weight_decay='narrow')), 's/a did not search it; it searched: '),
    (dict(storage='/no/where.db'), "a database's URL"), (dict(storage='sqlite:////no/such/folder/x.db'), 'storage: sqlite:////no/such/folder/x.db: cannot be opened'), (dict(storage='oracel://x/y'), 'cannot be opened'), (dict(storage='postgresql://h:abc/db'), 'cannot be opened'), (dict(storage='postgresql://me:secret@host/db'), 'without a password'),
    (dict(sampler='tpee'), "did you mean 'tpe'?"), (dict(pruner='half'), 'allowed names: none, halving'), (dict(trials=0), 'trials'), (dict(settings='no.csv', space={}), 'cannot be read'), (dict(settings='x.csv'), 'leave one out'), (dict(trial='s/a/s0/1'), "'trial' is no parameter of template search")]

@pytest.mark.parametrize('change, says', BAD, ids=[s for _, s in BAD])
def test_bad_input_is_one_line_and_status_2_before_any_training(project, capsys, change, says):
    tmp, put = project
    put('params/s/b.yaml', yaml.safe_dump({k: v for k, v in SMALL.items() if k not in ('study', 'run', 'template')} | change))
    assert cli.main(['run', 's/b']) == 2
    err = capsys.readouterr().err
    assert says in err and err.count('\n') == 1 and 'secret' not in err and not (tmp/'results').exists()

def test_a_table_of_bad_settings_is_refused(project, capsys):
    tmp, put = project
    for text, says in (('lr,dropout\n.1,.2\n', "column 'dropout' is no parameter"), ('lr\n2e400\n', 'lr'), ('max_valid_acc\n1\n', 'no settings'), ('lr,momentum\n.1\n', 'row 1 has not as many values'), ('lr\n.1\n.1,.2\n', 'row 2 has not as many values'), ('lr\n[\n', "'[' is no value")):
        put('params/s/t.csv', text); put('params/s/b.yaml', yaml.safe_dump({k: v for k, v in SMALL.items() if k not in ('study', 'run', 'template', 'space')} | dict(settings='t.csv')))
        assert cli.main(['run', 's/b']) == 2
        err = capsys.readouterr().err
        assert says in err and err.count('\n') == 1

def test_a_changed_table_of_settings_makes_its_record_stale(project):
    tmp, put = project
    put('params/s/t.csv', 'lr\n.1\n.2\n'); put('params/s/b.yaml', yaml.safe_dump({k: v for k, v in SMALL.items() if k not in ('study', 'run', 'template', 'space')} | dict(settings='t.csv')))
    old, p = runner._settings_digest(load_params('s/b', 'quick')), load_params('s/b', 'quick')
    put('params/s/t.csv', '\ufefflr\n.1\n.2\n'); assert runner._settings_digest(p) == old # the mark that Excel puts first
    put('params/s/t.csv', 'lr\n.1\n.3\n'); assert runner._settings_digest(p) != old and list(old) == ['settings t.csv']
