"The tutorials run as they are, make what they say, and write nowhere but into a temporary folder."
import json, os, re, shutil, subprocess, sys
from pathlib import Path

import pandas as pd, pytest

from imgcls.records import verify_record
from imgcls.report import check_site
from tests.addresses import address, rewritten, update
from tests.fixtures import ROOT

NAMES = ['first_run', 'your_own_images', 'new_study', 'gpu_or_cluster']

def cells(nb:dict, kind:str)->list[str]: return [''.join(c['source']) for c in nb['cells'] if c['cell_type'] == kind]
def source(name:str)->dict: return json.loads((ROOT/f'nbs/tutorials/{name}.ipynb').read_text(encoding='utf-8'))

def test_these_are_all(): assert sorted(f.stem for f in (ROOT/'nbs/tutorials').glob('*.ipynb')) == sorted(NAMES)

# ---- how they open

@pytest.mark.parametrize('name', NAMES)
def test_title_summary_badge_and_clean(name):
    nb, a = source(name), address()
    assert nb['cells'][0]['cell_type'] == 'markdown'
    title, summary, badge = [x for x in cells(nb, 'markdown')[0].splitlines() if x]
    assert title.startswith('# ') and summary.startswith('> ')
    assert badge.endswith(f"(https://colab.research.google.com/github/{a['user']}/{a['repo']}/blob/{a['branch']}/nbs/tutorials/{name}.ipynb)")
    assert all(not c['outputs'] and c['execution_count'] is None for c in nb['cells'] if c['cell_type'] == 'code')
    assert f"https://github.com/{a['user']}/{a['repo']} " in cells(nb, 'code')[0]
    for target in re.findall(r'\]\(([\w/]+\.ipynb)\)', '\n'.join(cells(nb, 'markdown'))): assert (ROOT/'nbs/tutorials'/target).is_file(), target

def test_every_address_is_that_of_the_settings(tmp_path):
    assert update(write=False) == [], 'make export sets them right'
    shutil.copytree(ROOT/'nbs/tutorials', tmp_path/'nbs/tutorials'); shutil.copy(ROOT/'README.md', tmp_path)
    (tmp_path/'settings.ini').write_text('[DEFAULT]\nuser = someone\nrepo = other\nbranch = trunk\n')
    assert len(update(tmp_path)) == 1 + len(NAMES) and update(tmp_path) == []
    assert 'github/someone/other/blob/trunk/nbs/' in (tmp_path/'README.md').read_text()
    assert rewritten('[nbdev](https://github.com/AnswerDotAI/nbdev)', 'a', 'b', 'c') == '[nbdev](https://github.com/AnswerDotAI/nbdev)'   # other people's addresses stay

def in_a_shell(cell:str, tmp:Path, before:str='')->list[str]:
    "Run a cell in IPython where git and pip only write down what they were asked; those lines, then the working directory."
    bin = tmp/'bin'; bin.mkdir(parents=True)
    for tool, then in (('git', 'for last; do :; done; mkdir "$last"'), ('pip', ':')):
        (bin/tool).write_text(f'#!/bin/sh\necho {tool} "$@" >> {tmp}/asked\n{then}\n'); (bin/tool).chmod(0o755)
    (tmp/'work').mkdir()
    code = f'from IPython.core.interactiveshell import InteractiveShell as S\nimport sys, types, os\n{before}\ns = S.instance()\nr = s.run_cell({cell!r})\nr.raise_error()\nprint(os.getcwd())'
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp/'work', env={**os.environ, 'PATH': f"{bin}{os.pathsep}{os.environ['PATH']}", 'IPYTHONDIR': str(tmp/'ipython')}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return ((tmp/'asked').read_text().splitlines() if (tmp/'asked').exists() else []) + [Path(done.stdout.strip().splitlines()[-1]).name]

@pytest.mark.skipif(os.name != 'posix', reason='needs sh')
@pytest.mark.parametrize('name', NAMES)
def test_the_install_cell_installs_on_colab_and_nowhere_else(name, tmp_path):
    cell, a = cells(source(name), 'code')[0], address()
    assert in_a_shell(cell, tmp_path/'here') == ['work']
    cloned, installed, there = in_a_shell(cell, tmp_path/'colab', "for m in ('google', 'google.colab'): sys.modules[m] = types.ModuleType(m)")
    assert cloned.split()[:2] == ['git', 'clone'] and cloned.split()[-2] == f"https://github.com/{a['user']}/{a['repo']}" and cloned.split()[-1] == there
    assert re.fullmatch(rf'pip install --quiet --editable \./{there}(\[\w+\])?', installed)

# ---- what they make

def files(root): return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob('*') if f.is_file() and '__pycache__' not in f.parts}

@pytest.fixture
def ran(tmp_path):
    "Executes a tutorial in a copy of the project; the notebook and the folder it wrote to."
    def run(name):
        tmp, copy = tmp_path, tmp_path/'copy'; (tmp/'t').mkdir()
        for part in ('nbs/tutorials', 'nbs/experiments', 'nbs/report', 'params'): shutil.copytree(ROOT/part, copy/part)
        shutil.copy(ROOT/'settings.ini', copy)
        before = files(copy)
        env = {k: v for k, v in os.environ.items() if k not in ('IMGCLS_RESULTS', 'IMGCLS_DATA', 'IMGCLS_PROJECT', 'TERM')}
        env |= dict(TMPDIR=str(tmp/'t'), PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
        done = subprocess.run([sys.executable, '-m', 'papermill', f'{name}.ipynb', str(tmp/'out.ipynb'), '--no-progress-bar'], cwd=copy/'nbs/tutorials', env=env, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr[-3000:]
        assert files(copy) == before, 'it wrote into the project'
        nb = json.loads((tmp/'out.ipynb').read_text())
        stderr = [''.join(o['text']) for c in nb['cells'] for o in c.get('outputs', []) if o.get('name') == 'stderr']
        assert not stderr, stderr
        here, = (d for d in (tmp/'t').glob('imgcls-*') if (d/'results').is_dir())
        return Executed(nb, here)
    return run

class Executed:
    "An executed tutorial: what cells printed, and the folder with what it made."
    def __init__(self, nb, here): self.nb, self.here = nb, here
    def of(self, start:str)->str:
        "Text that the cell with `start` in it put out."
        c, = (c for c in self.nb['cells'] if c['cell_type'] == 'code' and start in ''.join(c['source']))
        return ''.join(''.join(o.get('text') or o.get('data', {}).get('text/plain', '')) for o in c['outputs'])
    @property
    def images(self)->int: return sum('<img ' in ''.join(o.get('data', {}).get('text/html', '')) for c in self.nb['cells'] for o in c.get('outputs', []))
    def records(self, profile, study)->dict: return {f'{d.parent.name}/{d.name}': verify_record(d) for d in sorted((self.here/'results'/profile/study).glob('*/s*')) if d.name[1:].isdigit()}

def test_first_run(ran):
    t = ran('first_run')
    (name, r), = t.records('quick', 'optimizers').items()
    assert name == 'adam_tanh/s0' and r.notebook == 'run.ipynb' and r.metric('test') > .3
    acc = f"{r.metric('test'):.4f}"
    assert t.of('here_accuracy, run_accuracy') == f'in this notebook {acc}, by the command {acc}\n'
    assert f'{acc} in' in t.of('!imgcls run') and '1 up to date, 0 to run' in t.of('!imgcls run')
    assert "did you mean 'lr'?" in t.of('learning_rate=.1') and f'test accuracy    {acc}' in t.of('!imgcls show')
    assert t.images == 3   # a batch, curves, confusion

def test_your_own_images(ran):
    t = ran('your_own_images')
    before, after = (''.join(''.join(o['text']) for o in c['outputs']) for c in t.nb['cells'] if '!imgcls check' in ''.join(c['source']) and c['cell_type'] == 'code')
    assert before.count('PROBLEM') == 3 and 'broken.png' in before and 'PROBLEM' not in after
    assert not [f for f in json.loads((t.here/'check.json').read_text())['findings'] if f['problem']]
    (_, r), = t.records('mine', 'shapes').items()
    assert r.metric('test') > .8 and r.data.images == dict(train=324, valid=36, test=80)
    csv = pd.read_csv(t.here/'submission.csv')
    assert list(csv.columns) == ['id', 'shape'] and list(csv.id) == [f'{i}.png' for i in range(40)] + ['torn.png'] and csv['shape'].iloc[-1] == 'unreadable'
    assert int(t.of('right = sum').split()[0]) >= 32
    assert (t.here/'gallery.html').read_text().count('<h2>') == 4
    assert (t.here/'shapes.onnx').stat().st_size > 10_000 and '40 of 40 labels are those of the submission' in t.of('onnxruntime')

def test_new_study(ran):
    t = ran('new_study')
    got = t.records('quick', 'learning_rates')
    assert sorted(got) == [f'{r}/s{s}' for r in ('large', 'small', 'usual') for s in (0, 1)]
    assert {r.params['lr'] for r in got.values()} == {3e-4, 3e-3, 1e-1}
    assert "large.yaml: unknown key 'learning_rate' (did you mean 'lr'?)" in t.of("2>&1 | cut")
    assert 'Over paired seeds' in t.of('!imgcls compare')
    site = t.here/'site/quick'
    assert check_site(site) == []
    page = (site/'learning_rates.html').read_text()
    assert 'Which learning rate does Adam need' in page
    for r in ('small', 'usual', 'large'): assert f'runs/learning_rates/{r}/' in page
    assert t.images == 1

def test_gpu_or_cluster(ran):
    t = ran('gpu_or_cluster')
    got = t.records('quick', 'precision')
    assert sorted(got) == [f'{r}/s{s}' for r in ('bf16', 'fp32') for s in (0, 1, 2)]
    assert {k.split('/')[0]: r.env['dtype'] for k, r in got.items()} == dict(fp32='float32', bf16='bfloat16')
    assert 'nothing fits into the budget: 4 left' in t.of('--budget 0.001') and '[2/2]' in t.of('--cluster')
    assert 'device ' in t.of('pick_device(') and 'Over paired seeds' in t.of('!imgcls compare')
