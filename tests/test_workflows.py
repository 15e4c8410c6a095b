"What GitHub runs is what make runs."
import re, shutil, subprocess

import pytest, yaml

from tests.fixtures import ROOT

def steps(name:str)->list[dict]:
    return [s for job in yaml.safe_load((ROOT/f'.github/workflows/{name}.yml').read_text())['jobs'].values() for s in job['steps']]

def targets()->dict: # target → its recipe
    return {m[1]: m[2] for m in re.finditer(r'^([a-z-]+):(?!=).*\n((?:\t.*\n?)*)', (ROOT/'Makefile').read_text(), re.M)}

def test_pages_are_what_make_public_builds():
    commands = [s['run'] for s in steps('pages') if 'run' in s]
    assert commands == ['make public'] and '--no-run' in targets()['public']
    upload, = (s for s in steps('pages') if s.get('uses', '').startswith('actions/upload-pages-artifact@'))
    assert f"-o {upload['with']['path']}\n" in targets()['public']
    assert steps('pages')[-1]['uses'].startswith('actions/deploy-pages@')

def test_ci_is_the_script_that_anyone_can_run():
    assert [s['run'] for s in steps('ci') if 'run' in s][-1] == '.ci/run' and (ROOT/'.ci/run').stat().st_mode & 0o111

def test_every_make_target_is_listed_and_phony():
    text = (ROOT/'Makefile').read_text()
    phony = set(re.search(r'^\.PHONY: (.*)$', text, re.M)[1].split())
    assert phony == set(targets()) and all(re.search(rf'^{t}:.*## ', text, re.M) for t in phony)

@pytest.mark.skipif(not shutil.which('make'), reason='needs make')
@pytest.mark.parametrize('profiles, chosen', [(['cpu'], 'cpu'), (['cpu', 'full'], 'full'), ([], 'cpu')])
def test_the_largest_committed_profile_is_published(tmp_path, profiles, chosen):
    for p in profiles:
        d = tmp_path/'results'/p/'a/b/s0'; d.mkdir(parents=True); (d/'record.json').touch()
    for f in ('Makefile', 'settings.ini', 'setup.py', 'pyproject.toml', 'requirements.lock'): shutil.copy(ROOT/f, tmp_path)
    done = subprocess.run(['make', '-n', 'public'], cwd=tmp_path, capture_output=True, text=True)
    assert f'imgcls report --profile {chosen} --no-run' in done.stdout, done.stderr

@pytest.mark.parametrize('name', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'])
def test_documents_name_only_what_there_is(name):
    from imgcls.cli import parser
    text, usage = (ROOT/name).read_text(), ' '.join(f'imgcls {c}' for c in parser()._subparsers._group_actions[0].choices)
    blocks = '\n'.join(re.findall(r'^```sh\n(.*?)^```', text, re.M | re.S) + re.findall(r'`([^`\n]+)`', text))
    for t in re.findall(r'^make ([a-z-]+)', blocks, re.M): assert t in targets(), t
    for line in re.findall(r'^(?:[A-Z_]+=\S+ )?imgcls ([^#\n]+)', blocks, re.M):
        words = line.split()
        if len(words) > 1 and words[0] != 'COMMAND': parser().parse_args(words)
        else: assert words[0] == 'COMMAND' or f'imgcls {words[0]}' in usage, line
    for target in re.findall(r'\]\(([^)#:]+)\)', text): assert (ROOT/target).exists(), target
    for path in re.findall(r'`((?:nbs|tests|params|results|imgcls)/[\w/.-]*)`', text): assert (ROOT/path).exists() or path == 'params/my_study/', path
