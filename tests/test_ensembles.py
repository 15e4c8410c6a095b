"Ensembles as params: what is refused, members planned first, equal to the maths on saved predictions, and stale when a member changes."
import json, shutil
from pathlib import Path

import pandas as pd, pytest, yaml

from imgcls import runner
from imgcls.evaluation import average, confusion, metrics, vote
from imgcls.params import BadInput, load_params, load_study, make_params, profile_names, project_root, read_yaml, study_names
from imgcls.records import begin_record, params_dir, predictions, read_record
from imgcls.experiment import ensemble_members, member_predictions, put_together, save_ensemble
from tests.small import small_run

ROOT = Path(__file__).resolve().parent.parent
ENSEMBLES = [(s, r) for s in study_names() for r in load_study(s).runs if load_params(f'{s}/{r}').template == 'ensemble']


@pytest.mark.parametrize('study,run', ENSEMBLES)
def test_ensembles_depend_on_their_members_wherever_they_take_part(study, run):
    p, entry = load_params(f'{study}/{run}'), load_study(study).runs[run]
    assert entry.depends_on == p.members
    for m in p.members:
        s, r = m.split('/')
        for profile in profile_names() + ['full']:
            if entry.profiles is None or profile in entry.profiles: assert r in load_study(s).runs_for(profile), f'{m} takes no part in {profile}'
        if p.rule != 'vote': assert load_params(m).keep_probabilities, f'{m} keeps no probabilities'
    assert len({(q.dataset, q.valid_from, q.valid_pct, q.split_seed) for q in map(load_params, p.members)}) == 1 # over the same images

def test_studies_b_and_d_are_there(): assert {load_params(f'{s}/{r}').rule for s, r in ENSEMBLES} == {'vote', 'average', 'weighted'}


# a project of its own: three small runs, already trained, and ensembles of them
MEMBER = 'dataset: digits\nsize: 16\nepochs: 2\ntrain_limit: 40\nbatch_size: 32\nlr: 3e-3\narch: simple\narch_args: {filters: [16, 32]}\nthreads: 1\nkeep_probabilities: true\n'

@pytest.fixture(scope='module')
def project(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('ensembles')
    put = lambda name, text: ((tmp/name).parent.mkdir(parents=True, exist_ok=True), (tmp/name).write_text(text))
    put('params/profiles/quick.yaml', 'profile: quick\nepochs_factor: 1\nthreads: 1\ndataset_map: {cifar10: digits}\n')
    for i, r in enumerate('abc'): put(f'params/m/{r}.yaml', f'{MEMBER}momentum: 0.{8+i%2}\nsplit_seed: 42\nweight_decay: {i}e-3\n')
    put('params/m/study.yaml', 'question: Which?\nruns: [a, b, c]\n')
    put('params/e/voted.yaml', 'members: [m/a, m/b, m/c]\ntie_break: m/c\n'); put('params/e/mean.yaml', 'members: [m/a, m/b]\nrule: weighted\nkeep_probabilities: true\n')
    put('params/e/study.yaml', 'question: Together?\ntemplate: ensemble\nruns:\n  voted: {depends_on: [m/a, m/b, m/c]}\n  mean: {depends_on: [m/a, m/b]}\nseeds: {quick: 1}\n')
    shutil.copytree(ROOT/'nbs/experiments', tmp/'nbs/experiments')
    with pytest.MonkeyPatch.context() as m:
        for k, v in dict(IMGCLS_PROJECT=tmp, IMGCLS_RESULTS=tmp/'results', IMGCLS_CACHE=tmp/'cache', OMP_NUM_THREADS=1).items(): m.setenv(k, str(v))
        m.chdir(tmp)
        planned = runner.plan(['e'])
        for r in 'abc': small_run(load_params(f'm/{r}', 'quick').resolve())
        yield tmp, planned

def test_members_are_planned_first(project):
    _, planned = project # before there was any record
    assert [j.id for j in planned.jobs] == ['m/a/s0', 'm/b/s0', 'm/c/s0', 'e/voted/s0', 'e/mean/s0'] and all(j.todo for j in planned.jobs)
    assert planned.jobs[3].needs == ['m/a/s0', 'm/b/s0', 'm/c/s0']

def test_only_the_ensembles_run_and_their_records_are_what_the_maths_says(project):
    tmp, _ = project
    assert [j.id for j in runner.plan(['e']).todo] == ['e/voted/s0', 'e/mean/s0']
    out = runner.run(runner.plan(['e']), jobs=1)
    assert out.status == 0 and len(out.done) == 2, out.failed
    assert not runner.plan(['e']).todo
    frames = {f'm/{r}': predictions(tmp/f'results/quick/m/{r}/s0') for r in 'abc'}
    classes = [str(i) for i in range(10)]
    for run, want in (('voted', vote(frames, classes, 'm/c')), ('mean', average({k: frames[k] for k in ('m/a', 'm/b')}, classes, 'valid', True))):
        folder = tmp/f'results/quick/e/{run}/s0'; r, got = read_record(folder), predictions(folder)
        pd.testing.assert_frame_equal(got, want.drop(columns=['q2', 'q3', 'q4', 'q5'])) # what a record keeps
        assert (pd.read_parquet(folder/'predictions.parquet')['q1'].isna() == (want['top1'] == want['target'])).all() # and what follows from it it does not write
        assert r.metrics == {s: metrics(want, classes, s) for s in ('valid', 'test')} and r.notebook == 'run.ipynb'
        assert r.notes['train_seconds'] == pytest.approx(sum(read_record(tmp/f'results/quick/{m}/s0').timing.train_seconds for m in r.params['members']))
        assert 'lr' not in r.params and 'epochs_factor' not in r.params and r.model.parameters == sum(read_record(tmp/f'results/quick/{m}/s0').model.parameters for m in r.params['members'])
    shown = json.loads((tmp/'results/quick/e/voted/s0/run.ipynb').read_text())
    assert any('image/webp' in json.dumps(o) for c in shown['cells'] for o in c.get('outputs', [])) # both confusion matrices
    bundles = [o['data'] for c in shown['cells'] for o in c.get('outputs', []) if 'data' in o] # a committed notebook is small: each output once, each time once
    assert bundles and not any({'text/html', 'text/plain'} <= set(d) for d in bundles) and all(isinstance(v, str) for d in bundles for v in d.values())
    assert all(set(c['metadata']) >= {'papermill'} and 'execution' not in c['metadata'] for c in shown['cells'])
    # in a clone probabilities may be elsewhere: an average needs them again, a vote does not, and what is done stays done
    kept = tmp/'results/quick/m/b/s0/probabilities.parquet'; kept.rename(tmp/'kept')
    assert not runner.plan(['e']).todo
    assert [(j.id, j.state.why) for j in runner.plan(['e/voted'], force=True).todo] == [('e/voted/s0', '')]
    assert [(j.id, j.state.why) for j in runner.plan(['e/mean'], force=True).todo] == [('m/b/s0', 'its probabilities are not here'), ('e/mean/s0', '')]
    kept.write_bytes((tmp/'results/quick/m/a/s0/probabilities.parquet').read_bytes()) # an earlier training's, left where git put a new record
    assert [(j.id, j.state.why) for j in runner.plan(['e/mean'], force=True).todo] == [('m/b/s0', 'its probabilities are not here'), ('e/mean/s0', '')]
    pd.read_parquet(kept).iloc[:-1].to_parquet(kept)
    with pytest.raises(BadInput, match='probabilities.parquet: .* rows beside .* predictions; it is of another training'): predictions(kept.parent)
    kept.write_bytes(b'spoilt')
    with pytest.raises(BadInput, match='probabilities.parquet: cannot be read'): predictions(kept.parent)
    assert 'p0' not in predictions(kept.parent, every=False)
    (tmp/'kept').rename(kept)
    # another member, another ensemble
    (tmp/'params/m/b.yaml').write_text((tmp/'params/m/b.yaml').read_text().replace('epochs: 2', 'epochs: 1'))
    assert [j.id for j in runner.plan(['e']).todo] == ['m/b/s0', 'e/voted/s0', 'e/mean/s0']
    small_run(load_params('m/b', 'quick').resolve())
    again = runner.plan(['e'])
    assert [(j.id, j.state.why[:7]) for j in again.todo] == [('e/voted/s0', 'inputs:'), ('e/mean/s0', 'inputs:')]

def test_the_profile_as_papermill_takes_it_is_no_error(project, monkeypatch):
    from imgcls.params import notebook_params, parameters_cell
    tmp, _ = project
    given = read_yaml(tmp/'params/e/mean.yaml') | read_yaml(tmp/'params/profiles/quick.yaml')
    ns = {}; exec(cell := parameters_cell('ensemble'), ns); injected = '# Parameters\n' + ''.join(f'{k} = {v!r}\n' for k, v in given.items()); exec(injected, ns)
    p = notebook_params(ns | dict(In=['', cell, injected]))
    assert p.members == ['m/a', 'm/b'] and p.profile == 'quick'
    with pytest.raises(BadInput, match="'lr' is no parameter of template ensemble"): exec('lr = .1', ns); notebook_params(ns | dict(In=['', cell, injected + 'lr = .1\n']))


OK = dict(template='ensemble', members=['m/a', 'm/b', 'm/c'], tie_break='m/c')
@pytest.mark.parametrize('more,words', [
    (dict(tie_break=None), 'votes of 3 members can tie and none is named to decide; set it to one of m/a, m/b, m/c'), (dict(tie_break='m/cc'), "'m/cc' is not a member (did you mean 'm/c'?)"),
    (dict(members=['m/c']), 'two or more different runs'), (dict(members=['m/c', 'm/c']), 'two or more different runs'), (dict(members='m/c'), 'members'), (dict(members=['mc', 'm/c']), 'members'),
    (dict(rule='mean'), 'allowed names: vote, average, weighted'), (dict(epochs=3), "'epochs' is no parameter of template ensemble"), (dict(template='train', tie_break=None), "'members' is no parameter of template train")])
def test_bad_params(more, words):
    with pytest.raises(BadInput) as e: make_params({k: v for k, v in (OK | more).items() if v is not None}, 'e.yaml')
    assert words in str(e.value) and str(e.value).startswith('e.yaml') and '\n' not in str(e.value)

def test_members_that_do_not_fit_are_named(project, tmp_path):
    tmp, _ = project
    p = make_params(OK | dict(study='e', run='x', profile='quick'))
    with pytest.raises(BadInput, match='its member m/d has no record in profile quick; make it with: imgcls run m/d'): ensemble_members(p.but(members=['m/a', 'm/d'], tie_break='m/a'))
    root = tmp_path/'results'; shutil.copytree(tmp/'results', root)
    def change(run, f):
        path = root/f'quick/m/{run}/s0/predictions.parquet'; d = pd.read_parquet(path); f(d).to_parquet(path)
    q = p.but(rule='average', members=['m/a', 'm/b'], tie_break=None)
    (root/'quick/m/b/s0/probabilities.parquet').unlink() # as in a clone
    with pytest.raises(BadInput, match='the probabilities of its member m/b stayed on the machine that trained it; make them with: imgcls run m/b --profile quick --seeds 0 --force'): member_predictions(q, ensemble_members(q, root))
    f = root/'quick/m/b/s0/record.json'; d = json.loads(f.read_text()); del d['files']['probabilities.parquet']; f.write_text(json.dumps(d)) # as if never kept
    with pytest.raises(BadInput, match='m/b: this needs probabilities that were not kept'): put_together(q, member_predictions(q, ensemble_members(q, root)), list('0123456789'))
    change('c', lambda d: d.assign(id=['other', *d.id[1:]]))
    with pytest.raises(BadInput, match="over different images: .* image '.*' is in m/a alone"): member_predictions(p, ensemble_members(p, root))
    f = root/'quick/m/c/s0/record.json'; d = json.loads(f.read_text()); d['data']['classes'][3] = 'drei'; f.write_text(json.dumps(d))
    with pytest.raises(BadInput, match="class 3 is '3' in m/a .* and 'drei' in m/c"): ensemble_members(p, root)

def test_the_same_training_again_changes_no_ensemble(project):
    tmp, _ = project
    runner.run(runner.plan(['e']), jobs=1); assert not runner.plan(['e']).todo
    def again():
        small_run(load_params('m/c', 'quick').resolve()); return read_record(tmp/'results/quick/m/c/s0').files
    assert len({again()['model.safetensors'] for _ in range(4)}) == 1 and not runner.plan(['e']).todo # the library writes metadata in any order

def test_an_ensemble_made_by_hand_knows_its_members(project, monkeypatch):
    tmp, _ = project
    monkeypatch.delenv('IMGCLS_RUNNER', raising=False)
    p = load_params('e/mean', 'quick').resolve(); members = ensemble_members(p)
    r = save_ensemble(begin_record(p), p, members, put_together(p, member_predictions(p, members), list('0123456789')), 1.)
    assert set(r.notes['inputs']) == {'m/a/s0', 'm/b/s0'} and runner.examine(p, inputs=dict.fromkeys(r.notes['inputs'], 'other')).name == 'stale'
