"The runner: plans that check everything, nothing repeated, nothing lost."
import json, re, resource, signal, subprocess, sys, time

import pytest

from imgcls import records, runner, warm as warm_room
from imgcls.params import BadInput, load_params
from tests.standin import project # noqa: F401, a fixture

warm = pytest.mark.skipif(not warm_room.can_fork(), reason='warm kernels need fork')


# ---- the plan

def test_seeds_come_outermost_and_dependencies_first(project):
    project.study('two', more='depends_on: [one/b]\nseeds: {quick: 2}\n', c='epochs: 2\n')
    assert [j.id for j in runner.plan(['two']).jobs] == ['one/b/s0', 'two/c/s0', 'two/c/s1']
    assert [j.id for j in runner.plan(['two', 'one'], seeds=[0, 1]).jobs] == ['one/b/s0', 'two/c/s0', 'one/a/s0', 'two/c/s1', 'one/a/s1', 'one/b/s1']


def test_every_file_is_checked_before_anything_starts(project):
    project.put('params/one/b.yaml', 'lr: fast\n')
    with pytest.raises(BadInput, match="one/b.yaml: lr: 'fast' is not allowed"): runner.plan(['one'])
    project.put('params/one/b.yaml', 'arch_args: {acts: tanh}\n')
    with pytest.raises(BadInput, match="did you mean 'act'"): runner.plan(['one'])
    project.put('params/one/b.yaml', 'dataset: no_such_folder\n')
    with pytest.raises(BadInput, match='no_such_folder'): runner.plan(['one'])
    project.study('ring', more='depends_on: [ring/y, ring/x]\n', x='{}\n', y='{}\n')
    with pytest.raises(BadInput, match='in a circle'): runner.plan(['ring'])
    project.study('own', x='arch: mobilenet_v2\nweights: run:own/x\n')
    with pytest.raises(BadInput, match='own/x: weights: own/x cannot build on itself; name another run'): runner.plan(['own'])
    assert not project.results.exists()


@pytest.mark.parametrize('requests, kw, says', [
    (['onne'], {}, "did you mean 'one'"), (['one/c'], {}, 'no such run in one'), (['x.yaml'], {}, 'no such file'),
    (['one'], dict(profile='fulll'), "'fulll' is not a profile"), (['one'], dict(seeds=[]), 'seeds')])
def test_bad_requests_are_one_line(project, requests, kw, says):
    with pytest.raises(BadInput, match=says) as e: runner.plan(requests, **kw)
    assert '\n' not in str(e.value)


def test_expected_time_comes_from_records_then_from_the_study(project):
    project.put('params/one/study.yaml', 'question: Which?\nruns: {a: {minutes: {quick: 4}}, b: }\n')
    assert [j.minutes for j in runner.plan(['one']).jobs] == [4, None]
    assert runner.run(runner.plan(['one/a']), kernel='plain').status == 0
    assert runner.plan(['one/a'], seeds=[1]).jobs[0].minutes < 1 # seed 0 took seconds


@pytest.mark.parametrize('text, says', [
    ("runs: {a: {parrent: b}, b: }", "unknown key 'parrent' (did you mean 'parent'?)"), ('runs: [a, b]\nseeds: {quik: 3}', "seeds: 'quik' is not a profile (did you mean 'quick'?)"),
    ('runs: [a, b]\non: 3', 'True is no key; allowed: title, question'), ('runs: [a, b]\nname: two', "name: 'two' is not allowed: a study is called by its folder"),
    ('runs: [a, b]\nheadline: [aa]', "headline: 'aa' is not among its runs (did you mean 'a'?); runs: a, b"),
    ('runs: [a, b]\nequal: [[a, bb]]', "equal: 'bb' is not among its runs (did you mean 'b'?)"), ('runs: {a: {parent: c}, b: }', "runs: a: parent: 'c' is not among its runs"),
    ('runs: {a: {minutes: {quik: 3}}, b: }', "runs: a: minutes: 'quik' is not a profile"), ('runs: {a: {minutes: {quick: .inf}}, b: }', 'finite'), ('runs: [{a: {minutes: {quick: 1}}}, b]', 'runs')])
def test_a_bad_study_file_is_one_line(project, text, says):
    project.put('params/one/study.yaml', f'question: Which?\n{text}\n')
    with pytest.raises(BadInput) as e: runner.plan(['one'])
    assert says in str(e.value) and 'study.yaml' in str(e.value) and '\n' not in str(e.value)


def test_a_copy_of_a_run_file_does_not_replace_the_runs_record(project):
    assert runner.run(runner.plan(['one/a']), kernel='plain').status == 0
    copy = project.put('try.yaml', 'study: one\nrun: a\nlr: 5e-3\n')
    with pytest.raises(BadInput, match='one/a is a run of params/ already; give it another study or run name'): runner.plan([str(copy)])
    copy.write_text('study: one\nrun: mine\nlr: 5e-3\n')
    assert [j.id for j in runner.plan([str(copy)]).todo] == ['one/mine/s0'] and not runner.plan(['one/a']).todo


def test_forced_in_any_order_takes_what_lies_between(project):
    for name, needs in (('za', ''), ('zb', 'depends_on: [za]\n'), ('zc', 'depends_on: [zb]\n')): project.study(name, more=needs, r='{}\n')
    assert runner.run(runner.plan(['zc']), kernel='plain').status == 0
    for order in (['za', 'zc'], ['zc', 'za']): assert {j.id for j in runner.plan(order, force=True).todo} == {'za/r/s0', 'zb/r/s0', 'zc/r/s0'}, order
    assert not runner.plan(['zc']).todo


def test_a_run_trained_again_for_its_weights_is_planned_like_any_other(project):
    project.study('two', t='arch: resnet18\nweights: run:base/net\n'); project.study('base', net='arch: resnet18\n')
    assert runner.run(runner.plan(['two']), kernel='plain').status == 0
    (project.results/'quick/base/net/s0/model.safetensors').unlink()
    project.put('params/two/t.yaml', 'arch: resnet18\nweights: run:base/net\nlr: 5e-3\n')
    base = runner.plan(['two']).todo[0]
    assert (base.id, base.state.why, base.forced) == ('base/net/s0', 'its weights are not here', True) and base.minutes is not None


def test_an_interrupted_run_is_expected_to_take_what_is_left_of_it(project):
    from imgcls.records import begin_record
    project.put('params/one/study.yaml', 'question: Which?\nruns: {a: {minutes: {quick: 40}}, b: }\n')
    p = load_params('one/a', 'quick')
    (begin_record(p)/'progress.json').write_text('{"epoch": 9, "epochs": 10}')
    [job] = runner.plan(['one/a']).jobs
    assert job.state.name == 'interrupted' and job.minutes == pytest.approx(4)
    project.put('params/one/a.yaml', 'lr: 3e-3\n') # what it left is of other parameters
    assert runner.plan(['one/a']).jobs[0].minutes == 40


def test_a_resumed_run_took_at_least_its_training(project):
    assert runner.run(runner.plan(['one/a']), kernel='plain').status == 0
    f = project.results/'quick/one/a/s0/record.json'; d = json.loads(f.read_text())
    d['timing'] = dict(total_seconds=60., train_seconds=600.); f.write_text(json.dumps(d))
    assert runner.status(['one/a'])[0]['minutes'] == 10


def test_a_plan_that_only_looks_fetches_nothing(project, monkeypatch):
    from imgcls import data
    project.put('params/one/a.yaml', 'dataset: cifar10\n'); monkeypatch.setenv('IMGCLS_DATA', str(project.root)); monkeypatch.setenv('FASTAI_HOME', str(project.root))
    monkeypatch.setattr(data, '_download', lambda *a: pytest.fail('a download'))
    assert [j.id for j in runner.plan(['one/a'], download=False).todo] == ['one/a/s0']


# ---- what is up to date

def test_what_began_with_other_inputs_is_not_taken_up(project):
    p = load_params('one/a', 'quick').resolve()
    for was, kept in (('{}', True), ('{"settings t.csv": "other"}', False)):
        tmp = records.begin_record(p); (tmp/'.inputs').write_text(was); (tmp/'left').touch()
        assert runner.run(runner.plan(['one/a'], force=True), kernel='plain').status == 0
        assert (records.params_dir(p)/'left').exists() is kept


def test_only_what_changed_runs_again_and_status_says_which_part(project):
    plan = runner.plan()
    out = runner.run(plan, jobs=2)
    assert (out.status, sorted(r['id'] for r in out.done)) == (0, ['one/a/s0', 'one/b/s0'])
    assert [runner.examine(load_params(f'one/{r}', 'quick')).name for r in 'ab'] == ['done', 'done'] and not runner.plan().todo
    for folder, r in records.find_records(): records.verify_record(folder); assert r.notebook == 'run.ipynb' and not list(folder.glob('checkpoint*'))

    project.put('params/one/a.yaml', 'lr: 5e-3\n')
    assert [(j.id, j.state.name, j.state.why) for j in runner.plan().todo] == [('one/a/s0', 'stale', 'params: lr 0.001 → 0.005')]

    f = project.results/'quick/one/b/s0/record.json'
    d = json.loads(f.read_text()); d['data'] = dict(name='digits', fingerprint='other'); f.write_text(json.dumps(d))
    rows = {r['id']: r for r in runner.status()}
    assert rows['one/b/s0']['state'] == 'stale' and rows['one/b/s0']['why'].startswith('data')

    d['data'] = None; d['code'] = 'before'; d['env']['torch'] = '1.0'; f.write_text(json.dumps(d))
    row = {r['id']: r for r in runner.status()}['one/b/s0']
    assert row['state'] == 'older code' and row['drift'].startswith('torch 1.0 → ')
    assert 'one/b/s0' in [j.id for j in runner.plan().todo] # quick runs it again
    assert [j.id for j in runner.plan(changed_code=False).todo] == ['one/a/s0'] # other profiles do not


def test_a_run_whose_input_changed_is_stale(project):
    project.study('two', more='depends_on: [one/b]\n', c='epochs: 2\n')
    assert runner.run(runner.plan(['two'])).status == 0
    assert not runner.plan(['two']).todo
    project.put('params/one/b.yaml', 'lr: 2e-2\n')
    out = runner.run(runner.plan(['one/b']))
    assert [r['id'] for r in out.done] == ['one/b/s0']
    assert [(j.id, j.state.why) for j in runner.plan(['two']).todo] == [('two/c/s0', 'inputs: one/b/s0')]


# ---- failures end one run

def test_a_failing_run_ends_alone_and_keeps_its_error(project, monkeypatch):
    project.study('two', more='depends_on: [one/b]\n', c='{}\n')
    monkeypatch.setenv('STANDIN_B', 'raise ValueError("no\\nmore")')
    out = runner.run(runner.plan(['two', 'one']))
    assert out.status == 1 and [r['id'] for r in out.done] == ['one/a/s0']
    assert {r['id']: r['error'].split('\n')[0] for r in out.failed} == {'one/b/s0': 'ValueError: no', 'two/c/s0': 'not run: it needs one/b/s0, which failed'}
    failed = project.results/'quick/one/b/s0.failed'
    assert records.read_record(failed).error.startswith('ValueError: no\nmore') and 'ValueError' in (failed/'run.ipynb').read_text()
    assert [(r['state'], r['why']) for r in runner.status(['one/b'])] == [('failed', 'ValueError: no')]
    monkeypatch.delenv('STANDIN_B')
    assert runner.run(runner.plan(['two'])).status == 0 and not failed.exists()


@pytest.mark.parametrize('kernel', ['plain', pytest.param('warm', marks=warm)])
def test_a_kernel_that_dies_or_hangs_ends_that_run_with_the_reason(project, monkeypatch, kernel):
    monkeypatch.setenv('STANDIN_A', 'import signal; os.kill(os.getpid(), signal.SIGKILL)')
    monkeypatch.setenv('STANDIN_B', 'if state["epoch"] == 2: time.sleep(600)')
    out = runner.run(runner.plan(), jobs=2, kernel=kernel, timeout=20/60)
    errors = {r['id']: r['error'] for r in out.failed}
    assert re.match('the kernel died by SIGKILL.* in cell 4 of 5', errors['one/a/s0']), errors
    assert re.match('timed out after 20 s, in cell 4 of 5', errors['one/b/s0']), errors
    assert 'KeyboardInterrupt' in (project.results/'quick/one/b/s0.failed/run.ipynb').read_text() # where it hung
    monkeypatch.delenv('STANDIN_A'); monkeypatch.delenv('STANDIN_B')
    assert runner.run(runner.plan(), kernel=kernel).status == 0
    assert 'began at 2' in (project.results/'quick/one/b/s0/run.ipynb').read_text() # it went on from its checkpoint


def test_running_out_of_memory_is_a_reason_of_its_own(project, monkeypatch):
    import psutil
    job = dict(alive=str(project.put('alive', '')), timeout=None, memory=1, started='')
    class Memory: available, total = 1, 100
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: Memory)
    with runner._Watch(job, project.root) as w:
        w.process = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)
        assert w.process.wait(20) == -signal.SIGKILL
    assert w.reason.startswith('out of memory: it held')


# ---- in parallel, and warm

def metrics(project): return {k: (r['metrics'], r['params']) for k, r in project.records().items()}

@warm
def test_jobs_and_kernels_change_no_number(project, monkeypatch):
    runs = dict(jobs=1, kernel='plain'), dict(jobs=2, kernel='plain'), dict(jobs=2, kernel='warm')
    seen = []
    for i, kw in enumerate(runs):
        monkeypatch.setenv('IMGCLS_RESULTS', str(project.root/f'r{i}')); project.results = project.root/f'r{i}'
        assert runner.run(runner.plan(['one']), **kw).status == 0
        seen.append(metrics(project))
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 2


def test_budget_starts_nothing_that_will_not_fit_and_stops_in_time(project, monkeypatch):
    project.put('params/one/study.yaml', 'question: Which?\nruns: {a: {minutes: {quick: 9}}, b: {minutes: {quick: .01}}}\n')
    out = runner.run(runner.plan(), budget=3)
    assert ([r['id'] for r in out.done], out.left, out.stopped, out.status) == (['one/b/s0'], ['one/a/s0'], 'budget', 0)
    monkeypatch.setenv('STANDIN_EPOCH', '1.5')
    project.put('params/one/study.yaml', 'question: Which?\nruns: [a, b]\n')
    out = runner.run(runner.plan(['one/a']), budget=5/60)
    assert out.left == ['one/a/s0'] and out.stopped == 'budget' and not out.failed
    assert runner.status(['one/a'])[0]['state'] == 'interrupted'


def test_budget_does_not_wait_for_what_needs_a_run_that_will_not_fit(project):
    project.study('two', more='depends_on: [one/a]\n', c='{}\n')
    project.put('params/one/study.yaml', 'question: Which?\nruns: {a: {minutes: {quick: 90}}, b: }\n')
    t0, budget = time.monotonic(), 3
    out = runner.run(runner.plan(['two']), budget=budget)
    assert out.left == ['one/a/s0', 'two/c/s0'] and out.stopped == 'budget' and time.monotonic() - t0 < budget*60/2


def test_a_finished_run_does_not_ask_for_the_weights_it_began_with(project):
    project.study('two', t='arch: resnet18\nweights: run:base/net\n')
    project.study('base', net='arch: resnet18\n')
    assert runner.run(runner.plan(['two']), kernel='plain').status == 0
    (project.results/'quick/base/net/s0/model.safetensors').unlink() # as on another machine, or in a clone
    assert not runner.plan(['two']).todo and not runner.plan(['base']).todo
    project.put('params/two/t.yaml', 'arch: resnet18\nweights: run:base/net\nlr: 5e-3\n')
    assert [j.id for j in runner.plan(['two']).todo] == ['base/net/s0', 'two/t/s0']


def test_looking_at_records_fetches_nothing(project, monkeypatch):
    from imgcls import data
    assert runner.run(runner.plan(['one/a']), kernel='plain').status == 0
    f = project.results/'quick/one/a/s0/record.json'
    d = json.loads(f.read_text()); d['params']['dataset'] = 'cifar10'; d['data'] = dict(name='cifar10', fingerprint='of another machine')
    d['key'] = load_params('one/a', 'quick', dataset='cifar10').key
    f.write_text(json.dumps(d)); project.put('params/one/a.yaml', 'lr: 1e-3\ndataset: cifar10\n')
    monkeypatch.setenv('IMGCLS_DATA', str(project.root)); monkeypatch.setenv('FASTAI_HOME', str(project.root))
    monkeypatch.setattr(data, '_download', lambda *a: pytest.fail('a download'))
    [row] = runner.status(['one/a'])
    assert row['state'] in ('done', 'older code') and 'data not compared: dataset: cifar10 is not here' in row['why']


def test_a_store_shared_with_another_machine_keeps_its_runners(project, monkeypatch):
    project.results.mkdir()
    dead = 2**22 - 3 # no process here has it
    ours, other = (project.results/f'.runner-{host}-{dead}-abc123' for host in ('node', 'node-1'))
    ours.touch(); other.touch()
    monkeypatch.setattr(runner.socket, 'gethostname', lambda: 'node')
    alive = runner._open_store()
    assert not ours.exists() and other.exists() and alive.exists()
    alive.unlink()


def test_status_shows_what_runs_and_how_long_it_takes(project, monkeypatch):
    p = project.start('run', 'one/a', STANDIN_EPOCH=.7)
    try:
        for _ in range(1800):
            row = runner.status(['one/a'])[0]
            if row['state'] == 'running' and row['why'].startswith('epoch') or p.poll() is not None: break
            time.sleep(.1)
        assert row['state'] == 'running' and re.match('epoch [1-5]/5', row['why']) and row['left'] is not None, row
    finally: p.communicate(timeout=60)
    assert p.returncode == 0 and runner.status(['one/a'])[0]['state'] == 'done'


# ---- speed

def test_nothing_to_do_and_status_stay_quick_over_300_records(project):
    for s in range(10): project.study(f's{s}', more='seeds: {quick: 3}\n', **{f'r{i}': f'lr: {i+1}e-4\nepochs: {s+1}\n' for i in range(10)})
    for j in runner.plan().jobs:
        f = j.folder; f.mkdir(parents=True)
        p = j.p.resolve()
        rec = records.Record(study=p.study, run=p.run, seed=p.seed, profile=p.profile, status='done', key=p.key, params=p.as_dict(), code=records.code_hash())
        (f/'record.json').write_text(rec.model_dump_json(by_alias=True))
    def processor(f): # seconds of it: the clock also counts what else this machine does
        a = resource.getrusage(resource.RUSAGE_CHILDREN); out = f(); b = resource.getrusage(resource.RUSAGE_CHILDREN)
        return out, b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime
    unit = min(processor(lambda: subprocess.run([sys.executable, '-c', 'import pydantic, yaml, filelock'], check=True))[1] for _ in range(3))
    for args in (['run'], ['status', '--json']):
        done, used = processor(lambda: project.imgcls(*args))
        assert done.returncode == 0, done.stderr
        assert ('302 up to date, 0 to run' in done.stdout) if args == ['run'] else len(json.loads(done.stdout)) == 302
        assert used < 25*unit # 8 to 11 as it is; one `git status`, hash or parse too many a record shows


def test_an_ensemble_waits_for_its_members_and_is_stale_when_they_change(project):
    import shutil
    shutil.copy(project.root/'nbs/experiments/train.ipynb', project.root/'nbs/experiments/ensemble.ipynb')
    cells = json.loads((project.root/'nbs/experiments/ensemble.ipynb').read_text())
    cells['cells'][2]['source'] = "tmp, started, state = begin_record(p), now(), dict(value=len(p.members))\n(tmp/'checkpoint.json').touch()"
    cells['cells'][0]['source'] = "# parameters\nmembers: list = []"
    (project.root/'nbs/experiments/ensemble.ipynb').write_text(json.dumps(cells))
    project.study('both', more='template: ensemble\n', vote='members: [one/a, one/b]\nrule: average\n')
    plan = runner.plan(['both'])
    assert [(j.id, j.needs) for j in plan.jobs] == [('one/a/s0', []), ('one/b/s0', []), ('both/vote/s0', ['one/a/s0', 'one/b/s0'])]
    out = runner.run(plan, jobs=2)
    assert out.status == 0, out.failed
    assert not runner.plan(['both']).todo
    project.put('params/one/b.yaml', 'lr: 3e-2\n')
    assert [j.id for j in runner.plan(['both']).todo] == ['one/b/s0', 'both/vote/s0']
