"A stand-in project whose training is a loop over numbers, so that the runner and the command line can be tested in seconds."
import json, os, subprocess, sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent

CELLS = ["""# parameters
study: str = 'standin'
run: str = 'hand'
seed: int = 0
lr: float = 1e-3
epochs: int = 5""",
"""import json, os, time
from pathlib import Path
from imgcls.params import notebook_params
from imgcls.records import Record, begin_record, code_hash, commit_record, environment, now, params_dir, write_record
p = notebook_params()
print('checked', p.name)""",
"""tmp, started = begin_record(p), now()
state = dict(epoch=0, value=0.)
if (tmp/'checkpoint.json').exists(): state = json.loads((tmp/'checkpoint.json').read_text())
print('began at', state['epoch'])
while state['epoch'] < p.epochs: # 'training': what an epoch gives depends on the seed, the epoch and what came before
    time.sleep(float(os.environ.get('STANDIN_EPOCH', 0)))
    state = dict(epoch=state['epoch'] + 1, value=state['value']*p.momentum + p.lr*(p.seed + state['epoch'] + 1))
    (tmp/'.c').write_text(json.dumps(state)); os.replace(tmp/'.c', tmp/'checkpoint.json')
    (tmp/'progress.json').write_text(json.dumps(dict(epoch=state['epoch'], epochs=p.epochs)))
    exec(os.environ.get('STANDIN_' + p.run.upper(), ''))""",
"""(tmp/'checkpoint.json').unlink(missing_ok=True)
(tmp/'model.safetensors').write_text(repr(state['value']))
(tmp/'history.csv').write_text('epoch')
record = Record(study=p.study, run=p.run, seed=p.seed, profile=p.profile, status='done', key=p.key, params=p.as_dict(), code=code_hash(p.template), env=environment(),
                metrics=dict(valid=dict(accuracy=state['value'])), started=started, ended=now())
write_record(tmp, record)
if not os.environ.get('IMGCLS_RUNNER'): commit_record(tmp, params_dir(p))"""]


class Project:
    "A project folder and what is needed to call `imgcls` in it."
    def __init__(self, root):
        self.root, self.results = Path(root), Path(root)/'results'
        self.put('params/profiles/quick.yaml', 'profile: quick\n')
        self.put('params/profiles/cpu.yaml', 'profile: cpu\nepochs_factor: 2\n')
        self.study('one', a='lr: 1e-3\n', b='lr: 1e-2\n')
        self.template(CELLS)

    def put(self, name, text):
        f = self.root/name
        f.parent.mkdir(parents=True, exist_ok=True); f.write_text(text)
        return f

    def study(self, name, more='', **runs):
        for run, text in runs.items(): self.put(f'params/{name}/{run}.yaml', text)
        self.put(f'params/{name}/study.yaml', f"question: Which?\nruns: [{', '.join(runs)}]\n{more}")

    def template(self, cells):
        import nbformat
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python')))
        nb.cells[0].metadata['tags'] = ['parameters']
        nbformat.write(nb, self.put('nbs/experiments/train.ipynb', ''))

    def env(self, **kw):
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get('PYTHONPATH')])])
        return os.environ | dict(PYTHONPATH=path) | {k: str(v) for k, v in kw.items()}

    def imgcls(self, *args, timeout=120, **env):
        "Run the command; its result with `returncode`, `stdout`, `stderr`."
        return subprocess.run([sys.executable, '-c', 'import sys; from imgcls.cli import main; sys.exit(main())', *map(str, args)], cwd=self.root, env=self.env(**env), capture_output=True, text=True, timeout=timeout)

    def start(self, *args, **env):
        return subprocess.Popen([sys.executable, '-c', 'import sys; from imgcls.cli import main; sys.exit(main())', *map(str, args)], cwd=self.root, env=self.env(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def records(self, profile='quick'):
        "id → record.json of the whole records."
        out = {}
        for f in sorted(self.results.glob(f'{profile}/*/*/s*/record.json')):
            if f.parent.name[1:].isdigit(): out['/'.join(f.parent.parts[-3:])] = json.loads(f.read_text())
        return out


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A fresh stand-in project; this process and those it starts see it as theirs."
    for k in [k for k in os.environ if k.startswith('STANDIN_')]: monkeypatch.delenv(k)
    p = Project(tmp_path)
    runtime = tmp_path/'rt'; runtime.mkdir()
    for k, v in dict(IMGCLS_PROJECT=p.root, IMGCLS_RESULTS=p.results, IMGCLS_RUNTIME=runtime, IMGCLS_PRELOAD='ipykernel.kernelapp,ipykernel.ipkernel,pydantic',
                     OMP_NUM_THREADS=1).items(): monkeypatch.setenv(k, str(v))
    return p
