"Studies as params: every run resolves under every profile, no run twice by accident, and a ladder's step differs from its parent in just what it says."
import csv, itertools
from functools import cache

import pytest

from imgcls.models import NETWORKS, check_size, count_parameters, meta_model, model_layers
from imgcls.params import ARCHS, Params, load_params, load_study, profile_names, project_root, read_yaml, run_file, study_names

OURS = 'ablation', 'capacity', 'generated100', 'pretrain', 'scratch', 'transfer'
STUDIES = {s: load_study(s) for s in study_names()}
RUNS = [(s, r) for s, study in STUDIES.items() for r in study.runs]
STEPS = [(s, r) for s, r in RUNS if STUDIES[s].runs[r].parent]


@cache
def resolved(study, run, profile=None): return load_params(f'{study}/{run}', profile=profile).resolve()

def different(a, b):
    "Names of the parameters that differ; arguments of the same architecture one by one."
    a, b = a.as_dict(), b.as_dict()
    keys = {k for k in a if a[k] != b[k]} - {'study', 'run'}
    if a.get('arch') == b.get('arch') and 'arch_args' in keys:
        keys = keys - {'arch_args'} | {f'arch_args.{k}' for k in a['arch_args'] if a['arch_args'][k] != b['arch_args'][k]}
    return keys

def network(run, study='ablation', classes=100):
    p = resolved(study, run)
    return meta_model(p.arch, classes, p.size, **p.arch_args)


def test_the_studies_are_there(): assert set(OURS) <= set(STUDIES)


@pytest.mark.parametrize('profile', [None, *profile_names()])
@pytest.mark.parametrize('study', STUDIES)
def test_every_run_resolves_and_its_network_takes_its_images(study, profile):
    for run in STUDIES[study].runs:
        p = resolved(study, run, profile)
        assert p.resolve() == p and (p.study, p.run) == (study, run)
        if p.arch in NETWORKS and p.weights == 'none' and p.template == 'train':
            for size in {p.size, *(phase.size for phase in p.phases)} - {None}: check_size(p.arch, p.arch_args, size)


@pytest.mark.parametrize('profile', [None, *profile_names()])
@pytest.mark.parametrize('study', STUDIES)
def test_no_two_runs_are_the_same_work_unless_the_study_says_so(study, profile):
    s = STUDIES[study]
    runs = list(s.runs) if profile is None else s.runs_for(profile)
    for a, b in itertools.combinations(runs, 2):
        same = resolved(study, a, profile).key == resolved(study, b, profile).key
        assert same == any({a, b} <= set(group) for group in s.equal), f'{study}, profile {profile}: {a} and {b}'


@pytest.mark.parametrize('study,run', STEPS)
def test_a_step_changes_what_it_says(study, run):
    entry = STUDIES[study].runs[run]
    assert entry.parent in STUDIES[study].runs
    assert different(resolved(study, entry.parent), resolved(study, run)) == set(entry.changes)


# removed from and added to the parent's layers, by name; a step that is not here has its parent's layers
vgg_block = lambda i, convs: {f'block{i}.{layer}{j}' for j in convs for layer in ('conv', 'norm', 'act')}
BODY = {
    'step06': ({'dense2', 'headact2'}, set()),
    'step07': ({f'block{i}.pool' for i in range(1, 6)}, {'average'}),
    'step09': (vgg_block(3, (3, 4)) | vgg_block(4, (3, 4)) | vgg_block(5, (3, 4)), set()),
    'step11': ({'block5.pool'}, {'average'}),
    'step14': ({f'block{i}.pool' for i in (2, 3, 4)}, set()),
    'step15': (set(), {'block2.pool', 'block3.pool'}),
    'ten_conv': ({'block4.pool'}, set()),
    'eight_conv': (vgg_block(5, (1, 2)), set()),
}

@pytest.mark.parametrize('run', [r for s, r in STEPS if s == 'ablation' and r != 'step05'])
def test_layers_differ_only_where_the_step_says(run):
    before, after = (model_layers(network(r)) for r in (STUDIES['ablation'].runs[run].parent, run))
    names = lambda layers: {l.split(': ')[0] for l in layers}
    removed, added = BODY.get(run, (set(), set()))
    assert names(before) - names(after) == removed and names(after) - names(before) == added
    keep = lambda layers, drop: [l for l in layers if l.split(': ')[0] not in drop]
    assert keep(before, removed) == keep(after, added)  # the others are the same, settings and order included


def test_ladder_networks_are_the_published_ones():
    assert count_parameters(network('step00')) == 103_172
    assert {r: count_parameters(network(r)) for r in ('step11', 'step12', 'step13', 'step14', 'step15', 'ten_conv')} == dict.fromkeys(
        ('step11', 'step12', 'step13', 'step14', 'step15', 'ten_conv'), 11_921_828)
    assert count_parameters(network('eight_conv')) == 7_200_164
    convs = lambda r: sum(': Conv2d' in l for l in model_layers(network(r)))
    assert [convs(r) for r in ('step05', 'step06', 'step09', 'step15', 'eight_conv')] == [16, 16, 10, 10, 8]


def test_one_at_a_time_is_seven_hundred_epochs_and_a_fine_tune():
    p = resolved('ablation', 'step15')
    assert [q.epochs for q in p.phases] == [100]*7 + [20]
    assert all(len(q.augment) <= 1 for q in p.phases) and p.phases[-1].augment == []
    assert sorted(a for q in p.phases for a in q.augment) == sorted(resolved('ablation', 'step03').augment)


@cache
def varied(study):
    "What the runs of a study differ in: a file may name that even where it is the default."
    runs = [resolved(study, r) for r in STUDIES[study].runs]
    return {k for a, b in itertools.combinations(runs, 2) for k in different(a, b)}

@pytest.mark.parametrize('study,run', [x for x in RUNS if x[0] in OURS])
def test_a_run_file_says_how_to_run_it_and_little_else(study, run):
    path = run_file(f'{study}/{run}')
    first = path.read_text().splitlines()[0]
    assert first.startswith(f'# imgcls run {study}/{run} --profile ') and 'published: ' in first and ' min ' in first
    given, default = read_yaml(path), Params()
    assert (given.pop('study'), given.pop('run')) == (study, run)
    for k, v in given.items(): assert k in varied(study) or v != getattr(default, k), f'{path}: {k} is the default'
    options = ARCHS[given['arch']]()
    for k, v in given.get('arch_args', {}).items():
        assert f'arch_args.{k}' in varied(study) or v != getattr(options, k), f'{path}: arch_args.{k} is the default'


@pytest.mark.parametrize('study', STUDIES)
def test_published_files_are_there_and_name_runs_that_exist(study):
    for pub in STUDIES[study].published:
        if not pub.file: continue
        rows = list(csv.DictReader((project_root()/'params'/study/pub.file).open(newline='')))
        assert rows and {r['run'] for r in rows if r.get('run')} <= set(STUDIES[study].runs)


def test_published_settings_are_the_runs_settings():
    "The table that has them in columns against the params of its rows."
    file = project_root()/'params/generated100/published/generated100_runs.csv'
    for row in csv.DictReader(file.open(newline='')):
        p = resolved('generated100', row['run'])
        assert (p.arch, p.opt, p.lr, p.epochs) == (row['model'], row['optimizer'], float(row['lr']), int(row['epochs']))
        if row['momentum']: assert p.momentum == float(row['momentum'])
        if row['dropout']: assert p.arch_args['dropout'] == float(row['dropout'])
        for k in ('blocks', 'filters'):
            if row[k]: assert '-'.join(map(str, p.arch_args[k])) == row[k]
        assert (p.size, p.train_limit, p.valid_pct, p.batch_size) == (64, 130, .04, 32)
