"Every public name says what it is, and every parameter of a public function what it takes."
import ast, re

import pytest, yaml

from tests.fixtures import ROOT

# Words that mean the same wherever they are a parameter.
HOUSE = dict(
    p='the Params of a run', study='name of a study', run='name of a run', seed='of a run', profile="a profile's name", split='train, valid or test', name='of the thing the function is called after',
    arch='name of a network', arch_args='its arguments', classes='class names in order; of a network, how many', size='pixels a side', a="a network's typed arguments; of a command, the parsed ones", c='how many classes', f='a function to register',
    learn='a fastai Learner', dls='fastai DataLoaders', model='a torch module', device='a torch device or its name', dev='a torch device', images='uint8 (n, H, H, 3); of a bench, how many', x='pixels (n, 3, h, w)', d='an augmentation drawn for each picture',
    folder="a record's folder", root='of the run store; none: results_root()', path='a file', site="the book's folder", template='name of a template', frame='predictions, as saved', level='of confidence', epoch='from 0', epochs='how many',
    ax='a matplotlib Axes or array of them; none: a new figure', title='of a figure', alt='description of a figure', dpi='pixels an inch', metric='column of the history, metric of a record', n='how many',
    rounds='of a bench', log='called with a line of progress', workers='processes', env='environment variables', argv='arguments of the command; none: of this process', linger='seconds', seconds='a time', result='from fit', scores='from evaluate',
    names='of what is compared', labels='class index of each image', href='of a link', book='a Book', caption='of a table', file='of a table of published numbers', most='how many at most', where='named in errors')
# What an annotation says by itself.
TYPES = re.compile(r'\b(Params|Record|Book|Runs|Study|Plan|Job|State|Phase|Learner|Module|device|Report|ImageData|Image|Scores|Labels|Team|Labelled|Path|bool|Sequence|Entry|DataFrame|Splits|Source|Trial)\b')

def rooms(): return sorted(f for f in (ROOT/'imgcls').glob('*.py') if not f.name.startswith('_') and f.stem != 'all')

def public(path):
    "Top-level functions and classes of `__all__`, and the lines of the file."
    text = path.read_text(encoding='utf-8'); tree = ast.parse(text)
    names = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__')
    return [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in names], text.splitlines()

def unsaid(fn, lines)->list[str]:
    "Parameters with no comment on their line, not named in the docstring, and of no type or name that says it."
    doc = ast.get_docstring(fn) or ''
    said = lambda a: ('#' in lines[a.lineno - 1] or re.search(rf'`[^`]*\b{a.arg}\b[^`]*`', doc) or a.arg in HOUSE or a.annotation and TYPES.search(ast.unparse(a.annotation)))
    return [a.arg for a in fn.args.posonlyargs + fn.args.args + fn.args.kwonlyargs if not said(a)]

@pytest.mark.parametrize('path', rooms(), ids=lambda f: f.stem)
def test_public_names_have_docstrings(path):
    found, _ = public(path)
    assert not [n.name for n in found if not ast.get_docstring(n)]

@pytest.mark.parametrize('path', rooms(), ids=lambda f: f.stem)
def test_parameters_say_what_they_take(path):
    found, lines = public(path)
    assert not {n.name: u for n in found if isinstance(n, ast.FunctionDef) and (u := unsaid(n, lines))}

def test_the_check_finds_what_is_missing():
    lines = ['def f(widget:int, # of some kind', '      gadget:int, seed:int, folder):', '    "What `thing` does."']
    assert unsaid(ast.parse('\n'.join(lines)).body[0], lines) == ['gadget']

def test_the_api_site_lists_every_room():
    site = yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']
    listed = [n for s in site['sidebar']['contents'] for n in s.get('contents', [s.get('href')])]
    assert sorted(listed) == sorted(f.name for f in (ROOT/'nbs').glob('*.ipynb'))

def test_the_api_site_is_described_at_the_top_and_copied_to_where_nbdev_looks():
    import subprocess
    steps = subprocess.run(['make', '--dry-run', 'docs'], cwd=ROOT, capture_output=True, text=True).stdout
    assert 'cp _quarto.yml nbs/_quarto.yml' in steps and 'nbdev-docs' in steps
