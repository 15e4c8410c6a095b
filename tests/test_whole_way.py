"Params file to papermill to record, and everything a user can get wrong on the way: one line, exit status 2, nothing written."
import io, json, os, shutil, subprocess, sys, tarfile
from pathlib import Path

import numpy as np, pytest
from PIL import Image

from imgcls.cli import main
from imgcls.records import verify_record

ROOT = Path(__file__).resolve().parent.parent

def papermill(tmp, *args):
    env = {**os.environ, 'IMGCLS_RESULTS': str(tmp/'results')}
    return subprocess.run([sys.executable, '-m', 'papermill', 'nbs/experiments/train.ipynb', str(tmp/'out.ipynb'), *args, '--no-progress-bar'],
                          cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)

def test_plain_papermill_leaves_the_same_kind_of_record(tmp_path):
    done = papermill(tmp_path, '-f', 'params/optimizers/adam_leakyrelu.yaml', '-f', 'params/profiles/quick.yaml', '-p', 'seed', '1', '-p', 'epochs_factor', '0.04')
    assert done.returncode == 0, done.stderr[-2000:]
    r = verify_record(tmp_path/'results/quick/optimizers/adam_leakyrelu/s1')
    assert (r.study, r.run, r.seed, r.profile, r.status, r.notebook) == ('optimizers', 'adam_leakyrelu', 1, 'quick', 'done', None)
    assert {'history.csv', 'predictions.parquet', 'model.safetensors'} <= set(r.files)
    assert set(r.metrics) >= {'valid', 'test', 'best_epoch'} and r.model.parameters == 2_169_770
    assert r.params['epochs'] == 1 and r.params['dataset'] == 'digits'
    assert 'unknown parameter' not in done.stderr.lower() and 'Unable to parse' not in done.stderr
    nb = json.loads((tmp_path/'out.ipynb').read_text())
    images = sum('<img alt=' in ''.join(o.get('data', {}).get('text/html', '')) for c in nb['cells'] for o in c.get('outputs', []))
    assert images >= 3     # a batch, curves, confusion

def test_an_unknown_parameter_stops_before_training(tmp_path):
    done = papermill(tmp_path, '-p', 'learning_rate', '0.1')
    assert done.returncode != 0 and "did you mean 'lr'?" in done.stderr
    assert not (tmp_path/'results').exists()

# --- bad input, through the command ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project with one study of one run, whose YAML a test may change."
    root = tmp_path/'project'
    (root/'params/profiles').mkdir(parents=True); (root/'params/one').mkdir()
    shutil.copytree(ROOT/'nbs/experiments', root/'nbs/experiments')
    (root/'params/profiles/quick.yaml').write_text('profile: quick\n')
    (root/'params/one/study.yaml').write_text('question: Does it stop?\nruns: [a]\n')
    (root/'params/one/a.yaml').write_text('# imgcls run one/a\nlr: 1e-3\n')
    data = tmp_path/'data'; data.mkdir()
    monkeypatch.setenv('IMGCLS_PROJECT', str(root)); monkeypatch.setenv('IMGCLS_RESULTS', str(tmp_path/'results'))
    monkeypatch.setenv('IMGCLS_DATA', str(data)); monkeypatch.setenv('IMGCLS_CACHE', str(tmp_path/'cache')); monkeypatch.chdir(root)
    return root

def refused(capsys, tmp_path, *args):
    "Run the command; it must end with status 2 and one line, and write nothing."
    assert main(list(args)) == 2
    out = capsys.readouterr()
    lines = out.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith('imgcls: ') and 'Traceback' not in out.err, out.err
    assert not (tmp_path/'results').exists()
    return lines[0]

def write_run(root, text): (root/'params/one/a.yaml').write_text('# imgcls run one/a\n' + text)

@pytest.mark.parametrize('args, words', [
    (['run', 'optimisers'], ['optimisers', 'no such study', 'one']), (['run', 'one/b'], ['no such run', 'a']), (['run', 'params/one/b.yaml'], ['b.yaml', 'no such file']),
    (['run', '--profile', 'quik'], ['quik', "did you mean 'quick'?"]), (['report', '--profile', 'quik'], ['quik', 'quick']), (['runn'], ["did you mean 'run'?"])])
def test_unknown_names(project, tmp_path, capsys, args, words):
    line = refused(capsys, tmp_path, *args)
    for w in words: assert w in line

@pytest.mark.parametrize('text, words', [
    ('learning_rate: 0.1\n', ['params/one/a.yaml', 'learning_rate', "did you mean 'lr'?"]), ('lr: 0\n', ['lr', 'greater than 0']), ('lr: -1e-3\n', ['lr', 'greater than 0']),
    ('epochs: many\n', ['epochs', 'many', 'integer']), ('epochs: 2.5\n', ['epochs']), ('opt: adma\n', ['opt', 'adma', "did you mean 'adam'?"]), ('dataset: cifra10\n', ['cifra10']),
    ('arch: convent\n', ['convent', "did you mean 'convnet'?"]), ('arch_args: {acts: tanh}\n', ['acts', "did you mean 'act'?"]), ('lr: [1\n', ['a.yaml', 'line', 'YAML']),
    ('lr: 1\nlr: 2\n', ['lr', 'twice'])])
def test_wrong_params(project, tmp_path, capsys, text, words):
    write_run(project, text)
    line = refused(capsys, tmp_path, 'run', 'one', '--profile', 'quick')
    for w in words: assert w in line

def picture(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path)

def test_exponent_in_yaml_is_a_number(project, capsys):
    assert main(['run', 'one', '--profile', 'quick', '--dry-run']) == 0

def test_bad_data(project, tmp_path, capsys):
    data = tmp_path/'data'; write_run(project, 'dataset: mine\n')
    run = lambda: refused(capsys, tmp_path, 'run', 'one', '--profile', 'quick')
    (data/'mine').mkdir(); assert 'mine' in run()                              # an empty folder
    for c in 'ab':
        for i in range(12): picture(data/f'mine/{"test" if i > 8 else "train"}/{c}/{i}.png', 20*i + ord(c) % 5)
    (data/'mine/train/c').mkdir()
    assert "'train/c'" in run()                                                    # a class folder without images
    shutil.rmtree(data/'mine')
    buf = io.BytesIO()
    with tarfile.open(fileobj=buf, mode='w:gz') as t:
        for i in range(30):
            png = io.BytesIO(); Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)).save(png, 'PNG')
            info = tarfile.TarInfo(f'mine/train/{"ab"[i % 2]}/{i}.png'); info.size = png.tell(); png.seek(0); t.addfile(info, png)
    (data/'mine.tgz').write_bytes(buf.getvalue()[:len(buf.getvalue())//2])
    assert 'mine.tgz' in run()                                                 # cut short
    with tarfile.open(data/'mine.tgz', 'w:gz') as t:
        info = tarfile.TarInfo('../outside.png'); info.size = 0; t.addfile(info, io.BytesIO())
    line = run(); assert 'mine.tgz' in line and '../outside.png' in line
    assert not (tmp_path/'outside.png').exists()

def test_learning_rates_of_yaml(project):
    from imgcls.params import load_params
    for text, value in [('1e-3', 1e-3), ('1E-3', 1e-3), ('.5', .5), ('1e-04', 1e-4), ('"1e-3"', 1e-3), ('find', 'find')]:
        write_run(project, f'lr: {text}\n')
        assert load_params('one/a').lr == value
