"The house keeps its own plan: rooms import to the left only, templates show every parameter, notebooks and settings agree."
import ast, json, re
from importlib.metadata import distributions
from pathlib import Path

import pytest

from imgcls.params import (ARCHS, Params, load_params, load_study, parameters_cell, profile_names, read_yaml, ScaleParams, study_names, template_keys)

ROOT = Path(__file__).resolve().parent.parent
ORDER = ['params', 'records', 'plots', 'data', 'checks', 'loaders', 'models', 'pretrained', 'training', 'evaluation', 'experiment', 'predict', 'warm', 'runner', 'bench', 'search', 'report', 'cli', 'all']

def rooms(): return sorted(f for f in (ROOT/'imgcls').glob('*.py') if not f.name.startswith('_'))

@pytest.mark.parametrize('path', rooms(), ids=lambda f: f.stem)
def test_rooms_import_to_the_left(path):
    assert path.stem in ORDER, f'{path.stem} has no place in the house'
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or '').startswith('imgcls')):
            module = (node.module or '').removeprefix('imgcls').strip('.')
            names = [module.split('.')[0]] if module else [a.name for a in node.names]
            assert '*' not in [a.name for a in node.names], f'{path.stem} imports * from {module}'
        elif isinstance(node, ast.Import): names = [a.name.split('.')[1] for a in node.names if a.name.startswith('imgcls.')]
        for n in names: assert n == path.stem or ORDER.index(n) < ORDER.index(path.stem), f'{path.stem} imports {n}, which lies to its right'

@pytest.mark.parametrize('path', rooms(), ids=lambda f: f.stem)
def test_modules_come_from_notebooks(path):
    m = re.search(r'File to edit: (\S+)\.ipynb', path.read_text())
    assert m and (path.parent/f'{m[1]}.ipynb').resolve().exists()

@pytest.mark.parametrize('path', sorted((ROOT/'nbs/experiments').glob('*.ipynb')), ids=lambda f: f.stem)
def test_template_shows_every_parameter(path):
    nb = json.loads(path.read_text())
    tagged = [''.join(c['source']) for c in nb['cells'] if 'parameters' in c['metadata'].get('tags', [])]
    assert tagged == [parameters_cell(path.stem)]
    names = [t.id for n in ast.parse(tagged[0]).body if isinstance(n, ast.AnnAssign) for t in [n.target]]
    assert names == list(dict.fromkeys(names)) and set(names) == set(template_keys(path.stem))

def test_every_parameter_is_some_templates():
    assert {k for t in Params.model_fields['template'].annotation.__args__ for k in template_keys(t)} == set(Params.model_fields)

@pytest.mark.parametrize('profile', profile_names())
def test_profiles_scale_and_never_set_what_runs_vary(profile):
    keys = set(read_yaml(ROOT/'params/profiles'/f'{profile}.yaml')) - {'profile'}
    for s in study_names():
        runs = [load_params(f'{s}/{r}').as_dict() for r in load_study(s).runs]
        vary = {k for k in keys for p in runs if p.get(k) != runs[0].get(k)} # a value that all runs share may be scaled
        assert not vary, f'{profile} sets {vary}, in which the runs of {s} differ'

def test_run_files_open_with_their_command():
    for s in study_names():
        for r in load_study(s).runs:
            first = (ROOT/'params'/s/f'{r}.yaml').read_text().splitlines()[0]
            assert first.startswith('#') and f'{s}/{r}' in first, f'{s}/{r}: the first line is a comment with the command'

def test_the_lock_installs_on_the_oldest_python():
    "Debian 12 has Python 3.11.2: a package that asks for a later patch release cannot be installed there."
    from packaging.specifiers import SpecifierSet
    from packaging.utils import canonicalize_name as name
    oldest = re.search(r'^min_python = (.+)$', (ROOT/'settings.ini').read_text(), re.M)[1] + '.0'
    locked = {(name(n), v) for n, v in re.findall(r'^([^=]+)==(.+)$', (ROOT/'requirements.lock').read_text(), re.M)}
    here = [d for d in distributions() if (name(d.name), d.version.partition('+')[0]) in locked]
    assert len(here) > .9*len(locked) # an environment of another lock tells nothing
    assert not [f'{d.name} {d.version}' for d in here if oldest not in SpecifierSet(d.metadata.get('Requires-Python', ''))]

def test_committed_records_are_of_the_params_files():
    stale = []
    for f in sorted((ROOT/'results').glob('*/*/*/s*/record.json')):
        if f.parts[-5] in ('quick', 'scratch') or '.' in f.parts[-2]: continue
        r = json.loads(f.read_text())
        if load_params(f"{r['study']}/{r['run']}", r['profile'], seed=r['seed']).resolve().key != r['key']: stale.append(str(f.relative_to(ROOT)))
    assert not stale, f'a params file or a default changed under these published records: run them again, or take the change back: {stale}'

def test_committed_results_are_small():
    import subprocess
    files = subprocess.run(['git', 'ls-files', '-z', 'results'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\0')
    sizes = {f: (ROOT/f).stat().st_size for f in files if f}
    assert sizes and sum(sizes.values()) <= 15e6, dict(sorted(sizes.items(), key=lambda kv: -kv[1])[:5])
