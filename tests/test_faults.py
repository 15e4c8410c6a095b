"What goes wrong on real machines: kills, interrupts, full disks, two runners, spoilt records, lost workers."
import errno, json, os, re, shutil, signal, subprocess, sys, time

import pytest

from imgcls import records, runner, warm as warm_room
from imgcls.params import load_params
from tests.faults import KINDS, processes, storm
from tests.standin import project # noqa: F401, a fixture

linux = pytest.mark.skipif(not warm_room.can_fork(), reason='reads /proc and kills warm kernels: Linux only')


def no_process_left(project):
    for _ in range(100):
        if not (left := processes(project.root/'rt')): return
        time.sleep(.1)
    raise AssertionError(f'processes left: {left}')


def until(what, seconds=180):
    for _ in range(int(seconds*20)):
        if x := what(): return x
        time.sleep(.05)
    raise AssertionError('it did not happen')


@linux
def test_kills_at_random_moments_lose_and_repeat_nothing(project):
    figures = storm(project, kills=4, seed=5, names='abc')
    assert sum(figures['kills'].values()) == 4 and set(figures['kills']) == set(KINDS)


@linux
def test_an_interrupt_ends_cleanly_and_the_next_call_goes_on(project):
    project.put('params/one/a.yaml', 'lr: 1e-3\nepochs: 1\n'); project.put('params/one/b.yaml', 'lr: 1e-2\nepochs: 8\n')
    for how, epoch in ((signal.SIGINT, 2), (signal.SIGTERM, 3)):
        (project.results/'quick/one/b/s0.tmp/progress.json').unlink(missing_ok=True) # of the call before
        p = project.start('run', STANDIN_EPOCH=1)
        until(lambda: runner.progress_of(project.results/'quick/one/b/s0').get('epoch', 0) >= epoch)
        p.send_signal(how)
        out = p.communicate(timeout=60)[0]
        assert p.returncode == 1 and 'stopped: 1 left (one/b/s0); the same command goes on' in out and 'Traceback' not in out, out
        no_process_left(project)
        assert [r['state'] for r in runner.status()] == ['done', 'interrupted'] and set(project.records()) == {'one/a/s0'}
    assert project.imgcls('run').returncode == 0
    assert re.search(r'began at [3-8]', (project.results/'quick/one/b/s0/run.ipynb').read_text())


def test_two_runners_do_each_run_once(project):
    project.study('one', more='seeds: {quick: 2}\n', a='lr: 1e-3\n', b='lr: 1e-2\n')
    both = [project.start('run', STANDIN_EPOCH=.1) for _ in range(2)]
    outs = [p.communicate(timeout=120)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], outs
    done = [line.split()[1] for out in outs for line in out.splitlines() if line.startswith('[') and ' done, ' in line]
    assert sorted(done) == ['one/a/s0', 'one/a/s1', 'one/b/s0', 'one/b/s1'] == sorted(project.records()), outs


def test_a_file_size_limit_fails_that_run_and_keeps_what_was_good(project):
    assert project.imgcls('run').returncode == 0
    good = (project.results/'quick/one/a/s0/record.json').read_text()
    project.put('params/one/a.yaml', 'lr: 5e-3\n'); project.put('params/one/b.yaml', 'lr: 6e-3\n')
    code = 'import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); from imgcls.cli import main; sys.exit(main())'
    done = subprocess.run([sys.executable, '-c', code, 'run'], cwd=project.root, env=project.env(STANDIN_A='print("x"*200_000)'), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    line = next(x for x in done.stderr.splitlines() if x.startswith('failed: one/a/s0'))
    assert 'File too large' in line
    assert (project.results/'quick/one/a/s0/record.json').read_text() == good # the old record stands
    assert [r['state'] for r in runner.status()] == ['stale', 'done']


def test_a_full_disk_is_one_line_and_overwrites_nothing(project, monkeypatch):
    plan = runner.plan(['one/a'])
    alive = project.put('alive', '')
    job = lambda plan: runner._payload(plan.jobs[0], {}, alive, timeout=None, kernel='plain', memory=None)
    assert runner.execute(job(plan))['status'] == 'done'
    good = {f.name: f.read_bytes() for f in plan.jobs[0].folder.iterdir()}
    def full(*a, **kw): raise OSError(errno.ENOSPC, 'No space left on device', 'record.json')
    monkeypatch.setattr(records, 'write_atomic', full)
    project.put('params/one/a.yaml', 'lr: 9e-3\n')
    out = runner.execute(job(runner.plan(['one/a'])))
    assert (out['status'], out['error']) == ('failed', 'record.json: No space left on device')
    assert {f.name: f.read_bytes() for f in plan.jobs[0].folder.iterdir()} == good
    monkeypatch.undo()


def test_a_store_that_cannot_be_written_is_bad_input(project):
    (project.root/'file').write_text('')
    done = project.imgcls('run', '--results', project.root/'file'/'results')
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'records cannot be written here' in done.stderr, done.stderr
    if sys.platform == 'linux':
        done = project.imgcls('run', '--results', '/proc/results')
        assert done.returncode == 2 and 'records cannot be written here' in done.stderr


def test_a_spoilt_record_is_told_run_again_and_kept_aside(project):
    assert project.imgcls('run').returncode == 0
    f = project.results/'quick/one/a/s0/record.json'
    f.write_text(f.read_text()[:200])
    (project.results/'quick/one/b/s0/history.csv').unlink()
    rows = {r['id']: (r['state'], r['why']) for r in runner.status()}
    assert rows['one/a/s0'][0] == 'spoilt' and 'not a record' in rows['one/a/s0'][1]
    assert rows['one/b/s0'][0] == 'spoilt' and 'history.csv: missing' in rows['one/b/s0'][1]
    done = project.imgcls('run')
    assert done.returncode == 0 and set(project.records()) == {'one/a/s0', 'one/b/s0'}, done.stderr
    assert len((project.results/'quick/one/a/s0.spoilt/record.json').read_text()) == 200
    assert not runner.plan().todo


def test_a_clock_set_back_changes_nothing(project):
    assert project.imgcls('run', 'one/a').returncode == 0
    f = project.results/'quick/one/a/s0/record.json'
    d = json.loads(f.read_text()) | dict(started='2099-01-01T00:00:00+00:00', ended='2098-01-01T00:00:00+00:00') # written before the clock went back, and during
    f.write_text(json.dumps(d)); os.utime(f, (4e9, 4e9))
    assert not runner.plan(['one/a']).todo and runner.status(['one/a'])[0]['minutes'] == 0
    done = project.imgcls('run', 'one/a', '--force')
    assert done.returncode == 0 and 'done, ' in done.stderr
    assert project.records()['one/a/s0']['started'] < '2099'


@linux
def test_a_record_finished_just_before_the_kill_is_kept(project):
    plan = runner.plan(['one/a'])
    assert runner.run(plan).status == 0
    folder = plan.jobs[0].folder
    started = records.read_record(folder).started
    os.rename(folder, records.tmp_dir(folder)) # killed between the last write and the rename
    assert runner.run(runner.plan(['one/a'])).done[0].get('rescued') and records.read_record(folder).started == started
    shutil.copytree(folder, folder.with_name('s0.old')); shutil.rmtree(folder) # killed between the two renames of a replacement
    assert not runner.plan(['one/a']).todo and records.read_record(folder).started == started


@linux
def test_dask_gives_the_same_numbers_and_survives_a_lost_worker(project):
    distributed = pytest.importorskip('distributed', reason='needs imgcls[cluster]')
    project.study('one', more='seeds: {quick: 2}\n', a='lr: 1e-3\n', b='lr: 1e-2\n')
    assert project.imgcls('run', '--results', project.root/'local').returncode == 0
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=':0', processes=True)
    try:
        p = project.start('run', '--cluster', cluster.scheduler_address, STANDIN_EPOCH=.5)
        f = until(lambda: next(iter(project.results.glob('*/*/*/*.tmp/checkpoint.json')), None))
        worker = json.loads((f.parent/'.cell.json').read_text())['pid']
        os.kill(worker, signal.SIGKILL)
        out = p.communicate(timeout=120)[0]
        assert p.returncode == 0, out
    finally: cluster.close()
    got = {k: r['metrics'] for k, r in project.records().items()}
    project.results = project.root/'local'
    assert got == {k: r['metrics'] for k, r in project.records().items()} and len(got) == 4


def test_a_cluster_that_is_not_there_is_bad_input(project):
    done = project.imgcls('run', '--cluster', 'tcp://127.0.0.1:9')
    assert done.returncode == 2 and 'no scheduler answers there' in done.stderr and 'Traceback' not in done.stderr
