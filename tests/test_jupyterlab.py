"Someone opens a notebook in JupyterLab and runs all cells: a browser, the menu, no error, and a record."
import json, os, secrets, shutil, signal, subprocess, sys, time
from contextlib import contextmanager
from urllib.error import URLError
from urllib.request import urlopen

import psutil, pytest

from imgcls.records import verify_record
from tests.fixtures import ROOT

BADGE = 'https://colab.research.google.com/assets/colab-badge.svg'
MINUTES = 8  # for a notebook, on a machine that is busy with other things

@contextmanager
def jupyterlab(root, tmp):
    "A server over `root` with settings of its own; its address and token. Whatever happens, it and its kernels end with the block."
    token = secrets.token_hex(16)
    settings = tmp/'lab/@jupyterlab/apputils-extension'; settings.mkdir(parents=True)
    (settings/'notification.jupyterlab-settings').write_text(json.dumps(dict(fetchNews='false', checkForUpdates=False)))
    env = {k: v for k, v in os.environ.items() if not k.startswith(('JUPYTER', 'JPY_')) and k not in ('IMGCLS_PROJECT', 'IMGCLS_DATA')}
    env |= {f'JUPYTER_{k}_DIR': str(tmp/k.lower()) for k in ('CONFIG', 'DATA', 'RUNTIME')}
    env |= dict(JUPYTERLAB_SETTINGS_DIR=str(tmp/'lab'), JUPYTERLAB_WORKSPACES_DIR=str(tmp/'workspaces'), IPYTHONDIR=str(tmp/'ipython'), IMGCLS_RESULTS=str(tmp/'results'),
                PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--expose-app-in-browser', f'--ServerApp.root_dir={root}', '--ServerApp.ip=127.0.0.1', '--ServerApp.port=0',
               f'--IdentityProvider.token={token}', '--LabApp.extension_manager=readonly', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    with open(tmp/'server.log', 'w') as log: server = subprocess.Popen(command, cwd=root, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < until, (tmp/'server.log').read_text()[-3000:]
            try: # it chooses a port and writes it down
                base = f"http://127.0.0.1:{json.loads((tmp/f'runtime/jpserver-{server.pid}.json').read_text())['port']}"
                urlopen(f'{base}/api/status?token={token}', timeout=5).close(); break
            except (URLError, OSError, ValueError): time.sleep(.3)
        yield base, token
    finally:
        family = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.send_signal(signal.SIGTERM) if server.poll() is None else None
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill(); server.wait()
        for p in psutil.wait_procs(family, timeout=5)[1]: p.kill()

CELLS = '''() => { const w = window.jupyterapp.shell.currentWidget, cells = [...w.content.model.cells].filter(c => c.type === 'code');
    return {path: w.context.path, status: w.sessionContext.session?.kernel?.status, cells: cells.map(c => ({source: c.sharedModel.getSource(), count: c.executionCount, outputs: c.outputs.toJSON()}))} }'''

def run_all(page, base, token, path)->dict:
    "Open a notebook, choose Run All Cells from the menu, wait for the kernel; what the cells put out."
    page.route('https://**', lambda route: route.abort())
    page.goto(f'{base}/lab/tree/{path}?token={token}&reset', wait_until='domcontentloaded', timeout=120_000)
    page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=120_000)
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    # a cell that fails is the last one that runs
    page.wait_for_function(f'''() => {{ const s = ({CELLS})(); return s.status === 'dead' || s.status === 'idle' &&
        (s.cells.every(c => c.count !== null || !c.source) || s.cells.some(c => c.outputs.some(o => o.output_type === 'error'))) }}''', timeout=MINUTES*60_000)
    return page.evaluate(CELLS)

@pytest.fixture
def lab(tmp_path):
    "JupyterLab over a copy of what it is opened on."
    copy = tmp_path/'copy'
    for part in ('nbs/tutorials', 'nbs/experiments', 'params'): shutil.copytree(ROOT/part, copy/part)
    with jupyterlab(copy, tmp_path) as served: yield served

@pytest.mark.skipif(os.name != 'posix', reason='the server is ended by a signal')
@pytest.mark.parametrize('path, record, profile', [('nbs/experiments/train.ipynb', 'notebook/train', 'scratch'), ('nbs/tutorials/first_run.ipynb', 'optimizers/adam_tanh', 'quick')])
def test_all_cells_run_in_jupyterlab(lab, browser_page, tmp_path, path, record, profile):
    page, problems = browser_page
    seen = run_all(page, *lab, path)
    if 'IMGCLS_SHOTS' in os.environ: page.screenshot(path=f"{os.environ['IMGCLS_SHOTS']}/{record.replace('/', '_')}.png")
    outputs = [o for c in seen['cells'] for o in c['outputs']]
    assert seen['path'] == path and seen['status'] == 'idle'
    assert not [o for o in outputs if o['output_type'] == 'error' or o.get('name') == 'stderr']
    assert [c['count'] for c in seen['cells']] == list(range(1, len(seen['cells']) + 1))
    assert sum('<img ' in ''.join(o.get('data', {}).get('text/html', '')) for o in outputs) >= 3
    assert {p for p in problems if p.endswith('external request')} <= {f'{BADGE} external request'}   # the Colab badge of a tutorial; it is not let out
    text = ''.join(''.join(o.get('text', '')) for o in outputs)
    folder = tmp_path/'results'
    if profile == 'quick': folder = next(line.split()[1] for line in text.splitlines() if line.startswith('folder ')).split('/results/')[0] + '/results'
    r = verify_record(f'{folder}/{profile}/{record}/s0')
    assert r.status == 'done' and r.metric('test') is not None
