"The command line: one line for what is wrong, JSON for programs, light where there is nothing to do."
import contextlib, io, json, os, re, shlex, signal, subprocess, sys, time
from pathlib import Path

import pytest

from imgcls import cli, records, runner, warm as warm_room
from tests.standin import project # noqa: F401, a fixture

ROOT = Path(__file__).resolve().parent.parent


def call(*argv):
    "Status, stdout and stderr of the command, in this process."
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try: status = cli.main([str(x) for x in argv])
        except SystemExit as e: status = e.code
    return status, out.getvalue(), err.getvalue()


def commands():
    import argparse
    return next(x for x in cli.parser()._actions if isinstance(x, argparse._SubParsersAction)).choices


@pytest.mark.parametrize('argv, says', [
    (['rum'], "no such command (did you mean 'run'?)"), (['run', '--jobs'], 'expected one argument'), (['run', '--jobs', 'two'], 'invalid int value'),
    (['run', '--jobs', '0'], '--jobs 0: not allowed'), (['run', '--budget', '-1'], '--budget -1: not allowed'), (['run', '--timeout', 'nan'], '--timeout nan: not allowed'),
    (['run', '--seeds', '1,x'], '--seeds 1,x: not allowed'), (['run', '--seeds', '-1'], '--seeds -1: not allowed'), (['run', 'onne'], "did you mean 'one'"), (['run', 'one/aa'], "did you mean 'a'"),
    (['run', 'missing.yaml'], 'no such file'), (['run', '--profile', 'quik'], "did you mean 'quick'"), (['run', '--data', 'nowhere'], 'no such folder'), (['run', '--kernel', 'hot'], 'invalid choice'),
    (['status', 'one/x'], 'no such run in one'), (['status', '--profile', '../quick'], 'is not a profile'), (['show', 'one/a'], 'make it with: imgcls run one/a'), (['compare', 'one/a', 'one/b'], 'no record'),
    (['check', 'digits', '--json', 'none/x.json'], '--json none/x.json: no such folder none'), (['check', 'digits', '--figure', 'x.txt'], '--figure x.txt: ends in none of .png'),
    (['model', 'convnett'], "did you mean 'convnet'"), (['model', 'convnet', '--size', '-5'], '--size -5: not allowed'), (['model', 'convnet', '--classes', '0'], '--classes 0: not allowed'), (['run', '--seeds', '²'], '--seeds ²: not allowed'), (['run', '--seeds', ''], '--seeds : not allowed'), (['run', '--seeds', '0-9999999'], 'at most 1,000'), (['run', '--seeds', '99999999999'], 'seeds: [99999999999] is not allowed'),
    (['check', 'digits', '--json', 'params'], '--json params: is a folder'), (['bench', '--json', 'params'], '--json params: is a folder'), (['report', '-o', 'params'], 'holds something that is no book'), (['report', '--budget', '-1'], '--budget -1: not allowed'),
    (['best', 'one/a', '-o', 'params/one/study.yaml'], 'a file params/STUDY/RUN.yaml is needed'), (['best', 'one/a', '-o', 'params/optimizers/adam_tanh.yaml'], 'exists already'), (['new', 'My Study'], 'not a name'), (['new', 'one'], 'exists already'), (['bench', '--only', 'x'], 'invalid choice'), (['report', '--profile', 'x'], 'is not a profile')])
def test_bad_input_is_one_line_and_status_2(project, argv, says):
    status, out, err = call(*argv)
    assert (status, out) == (2, '') and err.startswith('imgcls: ') and err.count('\n') == 1 and says in err, err
    assert not project.results.exists()


@pytest.mark.parametrize('text, says', [
    ('lr: 0\n', 'lr: 0 is not allowed'), ('learning_rate: 1\n', "unknown key 'learning_rate' (did you mean 'lr'?)"), ('epochs: true\n', 'a number is needed'), ('lr: [1\n', 'line 2: not valid YAML'),
    ('lr: 1\nlr: 2\n', "key 'lr' is given twice"), ('- 1\n', "expected 'key: value' lines"), ('arch: resnot\n', 'not a known architecture'), ('arch_args: {filters: [0, 1]}\n', 'filters'),
    ('dataset: ./nothing\n', 'nothing'), ('template: ensemble\n', 'no such template'), ('template: serach\n', "template: 'serach' is not allowed (did you mean 'search'?)"),
    ('seed: 5\n', 'seed: not allowed in a file in params/'), ('arch_args: {{dense: 3}}\n', 'a key must be a name'), ('lr: 2024-02-30\n', 'not valid YAML'), ('run: a\n', "run: 'a' is not allowed: a file in params/ is called by its folder and its name; write b")])
def test_a_bad_params_file_is_found_before_anything_runs(project, text, says):
    project.put('params/one/b.yaml', text)
    status, out, err = call('run', 'one/a', 'one/b')
    assert status == 2 and says in err and err.count('\n') == 1 and 'b.yaml' in err or 'template' in text or 'dataset' in text, err
    assert not project.results.exists()


def test_a_yml_file_is_not_its_yaml_namesake(project):
    project.put('params/one/a.yml', 'lr: 0.5\nseed: 3\n')
    status, _, err = call('run', 'params/one/a.yml', '--dry-run')
    assert status == 2 and 'a.yml' in err and err.count('\n') == 1 and not project.results.exists()


def test_output_of_few_letters_gets_the_rest(project):
    assert runner.run(runner.plan(['one/a']), kernel='plain').status == 0
    project.put('params/one/a.yaml', 'lr: 5e-3\n')
    done = subprocess.run([sys.executable, '-c', 'from imgcls.cli import main; main()', 'status', 'one'], capture_output=True, env=os.environ | dict(PYTHONIOENCODING='ascii'), timeout=120)
    assert done.returncode == 0 and b'lr 0.001 \\u2192 0.005' in done.stdout, done.stderr


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs a device that is full')
def test_a_full_disk_under_the_output_is_one_line(project):
    with open('/dev/full', 'w') as full:
        r = subprocess.run([sys.executable, '-c', 'import sys; from imgcls.cli import main; sys.exit(main())', 'status'], stdout=full, stderr=subprocess.PIPE, text=True, cwd=project.root, env=project.env())
    assert r.returncode == 1 and r.stderr == 'imgcls: No space left on device; free some and run it again\n', r.stderr
    with open('/dev/full', 'w') as full:
        assert subprocess.run(r.args, stdout=full, stderr=full, cwd=project.root, env=project.env()).returncode == 1

@pytest.mark.skipif(os.name != 'posix', reason='a shell closes it')
def test_a_closed_output_is_no_error(project):
    r = subprocess.run(['sh', '-c', f'{shlex.quote(sys.executable)} -c "import sys; from imgcls.cli import main; sys.exit(main())" status >&-'], stderr=subprocess.PIPE, text=True, cwd=project.root, env=project.env())
    assert (r.returncode, r.stderr) == (0, '')

def test_runs_may_stand_after_an_option(project):
    plans = [json.loads(call('run', *argv, '--json', '--dry-run')[1]) for argv in (['one/a', 'one/b', '--jobs', '2'], ['one/a', '--jobs', '2', 'one/b'])]
    assert plans[0] == plans[1] and [j['id'] for j in plans[0]['jobs']] == ['one/a/s0', 'one/b/s0'], plans
    status, out, err = call('run', 'one/a', '--jobs', '2', '--unknown', 'one/b')
    assert (status, out) == (2, '') and 'unrecognized arguments: --unknown' in err

def test_help_is_something_to_act_on():
    status, out, _ = call()
    assert status == 0 and 'first steps' in out and 'imgcls run --profile quick --dry-run' in out
    for name in commands():
        status, out, _ = call(name, '--help')
        assert status == 0 and f'imgcls {name}' in out.split('example:')[1], name


def test_the_light_commands_import_nothing_heavy(project):
    heavy = ('torch', 'pandas', 'fastai', 'papermill', 'matplotlib', 'distributed', 'IPython')
    code = f"import sys; from imgcls.cli import main; assert main(['run', '--dry-run']) == 0 and main(['status']) == 0; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, '-c', code], cwd=project.root, env=project.env(), capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == '[]', done.stdout + done.stderr


def test_what_a_budget_leaves_is_said_so_that_it_can_go_on(project, monkeypatch):
    project.put('params/one/study.yaml', 'question: Which?\nruns: {a: {minutes: {quick: 9}}, b: {minutes: {quick: .01}}}\n')
    status, _, err = call('run', '--budget', '3', '--kernel', 'plain')
    assert status == 0 and 'budget spent: 1 left (one/a/s0); the same command goes on' in err
    status, _, err = call('run', '--budget', '3')
    assert status == 0 and 'nothing fits into the budget: 1 left (one/a/s0); the shortest needs about 9 min' in err
    status, _, err = call('run', '--budget', '3', '--force', '--kernel', 'plain')
    assert status == 0 and 'to go on: imgcls run one/a --seeds 0 --profile quick --force' in err and 'same command' not in err
    project.put('params/one/study.yaml', 'question: Which?\nruns: {a: {minutes: {quick: .01}}, b: {minutes: {quick: .01}}}\n')
    monkeypatch.setenv('STANDIN_EPOCH', '1.5')
    status, _, err = call('run', 'one/a', '--budget', 5/60, '--kernel', 'plain') # it seemed to fit, and was stopped
    assert status == 0 and 'budget spent: 1 left (one/a/s0); the same command goes on' in err


def test_plan_run_status_show_and_compare_in_json(project):
    status, out, _ = call('run', '--dry-run', '--json')
    plan = json.loads(out)
    assert status == 0 and [(j['id'], j['state'], j['run']) for j in plan['jobs']] == [('one/a/s0', 'missing', True), ('one/b/s0', 'missing', True)] and not project.results.exists()
    status, out, err = call('run', '--json', '--jobs', 2)
    assert status == 0 and sorted(r['id'] for r in json.loads(out)['done']) == ['one/a/s0', 'one/b/s0'] and re.search(r'\[2/2\] one/. ?', err)
    assert [(r['id'], r['state']) for r in json.loads(call('status', '--json')[1])] == [('one/a/s0', 'done'), ('one/b/s0', 'done')]
    assert json.loads(call('show', 'one/a', '--json')[1])['params']['lr'] == .001
    text = call('show', 'one/a')[1]
    assert 'valid accuracy' in text and 'one/a seed 0, profile quick' in text
    rows = {r['what']: r for r in json.loads(call('compare', 'one/a', 'one/b', '--json')[1])['runs']}
    assert rows['lr'] == dict(what='lr', **{'one/a': .001, 'one/b': .01}) and 'epochs' not in rows
    assert call('show', 'one/a', '--seed', 3)[2].startswith('imgcls: one/a: no record of seed 3')


def test_a_new_study_runs_as_it_is(project):
    status, out, _ = call('new', 'mine')
    assert status == 0 and 'imgcls run mine' in out
    assert call('run', 'mine')[0] == 0 and set(project.records()) == {'mine/baseline/s0', 'mine/variant/s0'}


def test_a_failed_run_is_status_1_and_one_line(project, monkeypatch):
    monkeypatch.setenv('STANDIN_A', '1/0')
    status, out, err = call('run', 'one/a')
    assert status == 1 and 'failed: one/a/s0: ZeroDivisionError: division by zero' in err and 'Traceback' not in err


@pytest.mark.skipif(not warm_room.can_fork(), reason='warm kernels need fork')
def test_plain_papermill_can_use_the_warm_kernel(project):
    status, out, _ = call('kernel', '--prefix', project.root)
    assert status == 0 and (project.root/'share/jupyter/kernels/imgcls/kernel.json').exists()
    out = project.root/'out.ipynb'
    env = project.env(JUPYTER_PATH=project.root/'share/jupyter')
    done = subprocess.run([sys.executable, '-m', 'papermill', '-k', 'imgcls', project.root/'nbs/experiments/train.ipynb', out, '-p', 'epochs', '2', '--no-progress-bar'],
                          cwd=project.root, env=env, capture_output=True, text=True, timeout=120)
    from tests.faults import processes, warm_parents
    try: assert done.returncode == 0 and warm_parents(project.root/'rt'), done.stderr
    finally:
        for pid in processes(project.root/'rt'): # it would linger for ten minutes
            with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGTERM)
    assert read_hand(project).notebook is None


def read_hand(project): return records.read_record(project.results/'scratch/standin/hand/s0')


@pytest.mark.skipif(not warm_room.can_fork(), reason='warm kernels need fork')
def test_the_real_template_goes_on_from_its_last_epoch_bit_for_bit(tmp_path, monkeypatch):
    from tests.faults import processes
    for k, v in dict(IMGCLS_PROJECT=ROOT, IMGCLS_RUNTIME=tmp_path, OMP_NUM_THREADS=1, PYTHONPATH=ROOT).items(): monkeypatch.setenv(k, str(v))
    held = warm_room.lease() # one parent for all three
    (tmp_path/'mine').mkdir()
    file = tmp_path/'mine'/'small.yaml'; file.write_text('epochs: 60\nthreads: 1\nevaluate_test: false\n')
    files = ('model.safetensors', 'predictions.parquet')
    got = []
    for kill in (False, True):
        results = tmp_path/f'kill{kill}'
        monkeypatch.setenv('IMGCLS_RESULTS', str(results))
        folder = results/'quick/mine/small/s0'
        command = [sys.executable, '-c', 'import sys; from imgcls.cli import main; sys.exit(main())', 'run', str(file)]
        if kill:
            p = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            while p.poll() is None and not runner.progress_of(folder).get('epoch'): time.sleep(.02)
            p.kill(); p.wait() # and at once what it started, which else ends by itself, perhaps with the record written
            for pid, cmd in processes(tmp_path).items():
                if 'multiprocessing.spawn' in cmd or ' client ' in cmd:
                    with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
            assert not folder.exists() and [*records.tmp_dir(folder).glob('checkpoint*')]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        r = records.verify_record(folder)
        assert bool(r.notes.get('resumed_after_epoch')) == kill
        got.append(({f: r.files[f] for f in files}, r.metrics))
    held.close()
    assert got[0] == got[1]
