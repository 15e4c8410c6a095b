"The book says what the records say, in the table, in the sentence and on the front page, and a browser can read it."
import base64, io, json, re, shutil, threading, time
from pathlib import Path

import pandas as pd, pytest

from imgcls.params import BadInput
from imgcls.records import verify_record
from imgcls.report import (Book, MARKS, all_runs_answer, book_key, build_book, check_site, comparisons, ensemble_answer, ensemble_confusion, ensemble_retests, ensemble_tables, ensemble_tests, gain_figure, gains, pretraining, provenance,
                           readme_is_stale, readme_parts, speedups, stage_runs, supported, transfer_answer, transfer_curves, transfer_table, write_readme)
from tests.check_site import Site, check, served
from tests.fixtures import ROOT, edit_accuracy, fake_record, make_project

ACCURACY = dict(sgd_leakyrelu=.41, sgd_tanh=.425, adam_leakyrelu=.745, adam_tanh=.73)

@pytest.fixture(scope='module')
def project(tmp_path_factory):
    root = make_project(tmp_path_factory.mktemp('project'))
    with pytest.MonkeyPatch.context() as m:
        m.setenv('IMGCLS_PROJECT', str(root)); m.setenv('IMGCLS_RESULTS', str(root/'results')); m.chdir(root)
        for run, acc in ACCURACY.items(): fake_record(root/'results', 'optimizers', run, accuracy=acc)
        fake_record(root/'results', 'optimizers', 'adam_tanh', seed=1, accuracy=.70)
        for i, run in enumerate(('step00', 'step01', 'step02', 'step05', 'step06')): fake_record(root/'results', 'ablation', run, accuracy=.2 + .05*i)
        new_study(root)
        yield root

def new_study(root):
    "A study that no page is about: params and a record."
    (root/'params/mine').mkdir()
    (root/'params/mine/study.yaml').write_text('title: "A study of <mine>"\nquestion: Does it work?\nruns: [one, two]\n')
    for run, lr in (('one', .1), ('two', .2)): (root/'params/mine'/f'{run}.yaml').write_text(f'# imgcls run mine/{run}\nlr: {lr}\n')
    fake_record(root/'results', 'mine', 'one', accuracy=.5)

@pytest.fixture(scope='module')
def site(project): return build_book('quick').parent

def text(f): return re.sub(r'<[^>]+>', '', Path(f).read_text(encoding='utf-8'))

def plain(shown): return re.sub(r'<[^>]+>', '', shown.data)

def test_site_is_whole(site):
    assert check_site(site) == []
    page = text(site/'optimizers.html')
    for shown in ('41.0', '42.5', '74.5', '71.5'): assert shown in page

def test_numbers_link_to_their_notebooks(site):
    page = (site/'optimizers.html').read_text()
    assert re.search(r'<a href="runs/optimizers/adam_leakyrelu/s0.html"[^>]*>74.5</a>', page)
    assert re.search(r'<a href="runs/optimizers/adam_tanh/about.html"[^>]*>71.5</a>', page)   # a mean links to its seeds
    assert 'test accuracy 0.7450' in text(site/'runs/optimizers/adam_leakyrelu/s0.html')
    about = (site/'runs/optimizers/adam_tanh/about.html').read_text()
    assert 's0.html' in about and 's1.html' in about and 's0.json' in about

def test_names_are_escaped(site):
    page = (site/'optimizers.html').read_text()
    assert "<b>'quoted'" not in page and '&lt;b&gt;' in page

def test_a_folder_that_is_no_book_is_left_alone(project, tmp_path):
    (tmp_path/'thesis.txt').write_text('all of it')
    with pytest.raises(BadInput, match='holds something that is no book'): build_book('quick', tmp_path)
    assert (tmp_path/'thesis.txt').read_text() == 'all of it'

def _edit(folder, **kw):
    f = Path(folder)/'record.json'; d = json.loads(f.read_text())
    for k, v in kw.items(): d[k] = d[k] | v if isinstance(v, dict) else v
    f.write_text(json.dumps(d))

def test_runs_are_ranked_only_where_they_are_judged_on_the_same_images(project, tmp_path):
    from imgcls.report import front
    a = fake_record(tmp_path, 'optimizers', 'adam_tanh', accuracy=.6); b = fake_record(tmp_path, 'optimizers', 'sgd_tanh', accuracy=.9)
    assert [r.run for r in Book('quick', tmp_path).bests('optimizers')] == ['sgd_tanh']
    _edit(b, data=dict(images=dict(train=10, valid=5, test=7)))
    book = Book('quick', tmp_path)
    assert {r.run for r in book.bests('optimizers')} == {'adam_tanh', 'sgd_tanh'} and plain(book.leaderboard()).count(book.title('optimizers')) == 2
    assert book.best('optimizers').run in readme_parts('quick', tmp_path)[0]

def test_headline_runs_stand_on_the_leaderboard_besides_the_best(project, tmp_path):
    for run, acc in (('convnet', .6), ('convnet_long', .7), ('fast_resnet', .9)): fake_record(tmp_path, 'recipes', run, accuracy=acc)
    book = Book('quick', tmp_path); shown = plain(book.leaderboard())
    assert [(r.run, n) for r, n in book.leaders('recipes')] == [('fast_resnet', 3), ('convnet_long', 3)]
    assert shown.count(book.title('recipes')) == 2 and 'convnet_long' in shown and '`recipes/convnet_long`' in readme_parts('quick', tmp_path)[0] and '`recipes/convnet`' not in readme_parts('quick', tmp_path)[0]

def test_records_without_a_test_accuracy_are_not_nothing(project, tmp_path):
    from imgcls.report import answer, front, missing
    assert 'Nothing has run yet' in plain(front(Book('quick', tmp_path))) and 'No run of this study' in plain(missing(Book('quick', tmp_path), 'optimizers'))
    a = fake_record(tmp_path, 'optimizers', 'adam_tanh', accuracy=.6); d = json.loads((a/'record.json').read_text()); del d['metrics']['test']; (a/'record.json').write_text(json.dumps(d))
    book = Book('quick', tmp_path)
    assert 'one record, none with a test accuracy' in plain(front(book)) and 'do not answer yet' in plain(missing(book, 'optimizers'))

def test_a_published_row_stands_in_the_study_it_names_a_run_of(project, tmp_path):
    from imgcls.report import beside, beside_answer
    empty, some = Book('quick', tmp_path), Book('quick', project/'results')
    rows = {s: {b.runs.run for p in empty.study(s).published if p.file and 'ten_class' in p.file for b in beside(empty, s, p.file)} for s in ('transfer', 'ensembles')}
    assert rows == dict(transfer={'mobilenet_64', 'mobilenet_224', 'resnet50_224'}, ensembles={'ten_class_vote'})
    printed = [re.search(r'printed (\d+) numbers', plain(beside_answer(b)))[1] for b in (empty, some)]
    assert printed[0] == printed[1] # what was printed does not hang on what has run

def test_a_diverged_run_says_so_everywhere(project, tmp_path):
    from imgcls.report import cost_answer
    fake_record(tmp_path, 'optimizers', 'adam_tanh', accuracy=.6); bad = fake_record(tmp_path, 'optimizers', 'adam_tanh', seed=1, accuracy=.1)
    _edit(bad, status='diverged')
    book = Book('quick', tmp_path)
    assert '(1 of 2 seeds diverged)' in plain(book.table('optimizers')) and '(1 of 2 seeds diverged)' in plain(book.leaderboard())
    lone = tmp_path/'lone'; f = fake_record(lone, 'optimizers', 'sgd_tanh', accuracy=.1)
    _edit(f, status='diverged', timing=dict(train_seconds=0.))
    assert 'diverged' in plain(Book('quick', lone).table('optimizers')) and 'answer' in cost_answer(Book('quick', lone)).data

def test_a_shorter_training_and_mirror_images_are_said(project, tmp_path):
    from imgcls.report import how_far
    f = fake_record(tmp_path, 'optimizers', 'adam_tanh', accuracy=.6)
    assert 'fewer epochs' in plain(how_far(Book('quick', tmp_path), 'optimizers'))
    _edit(f, params=dict(epochs=30, tta=True)); book = Book('quick', tmp_path)
    assert 'fewer epochs' not in plain(how_far(book, 'optimizers')) and 'with mirror images' in plain(book.table('optimizers'))

def test_valid_and_test_that_lie_apart_are_said(project, tmp_path):
    from imgcls.report import how_far, valid_and_test
    f = fake_record(tmp_path, 'optimizers', 'adam_tanh', accuracy=.6); fake_record(tmp_path, 'optimizers', 'sgd_tanh', accuracy=.6)
    m, data = (json.loads((Path(f)/'record.json').read_text())[k] for k in ('metrics', 'data'))
    def said(valid, test, images):
        _edit(f, metrics={'valid': m['valid'] | dict(accuracy=valid), 'test': m['test'] | dict(accuracy=test)}, data=data | dict(images=dict(train=9000, valid=images, test=images)))
        return re.sub('<[^>]+>', '', valid_and_test(Book('quick', tmp_path), 'optimizers'))
    assert said(.6, .6, 5000) == said(1., 1., 5000) == said(.6, .5, 50) == '' # 50 images cannot tell
    assert said(.6, .55, 5000).startswith('In 1 of 2 trainings') and '60.0 and 55.0 % (adam_tanh)' in said(.6, .55, 5000)
    assert 'further apart than chance' in said(.55, .6, 5000) and 'data.html' in how_far(Book('quick', tmp_path), 'optimizers').data

def test_cost_chooses_on_valid(project, tmp_path):
    from imgcls.report import cost_answer
    a = fake_record(tmp_path, 'optimizers', 'adam_tanh', accuracy=.6); fake_record(tmp_path, 'optimizers', 'sgd_tanh', accuracy=.7)
    m = json.loads((Path(a)/'record.json').read_text())['metrics']
    _edit(a, metrics=dict(valid=m['valid'] | dict(accuracy=.99)))
    assert 'adam_tanh' in plain(cost_answer(Book('quick', tmp_path)))

def test_the_soonest_at_an_accuracy(project, tmp_path):
    "Training seconds are summed up to the epoch; a run counts where all its seeds get there; levels that one epoch leaps over are one row."
    from imgcls.report import effects, reached, time_to
    for seed, (acc, a, b) in enumerate([([.35, .62, .71], 2., .625), ([.38, .64, .72], 4., .625)]):
        f = fake_record(tmp_path, 'optimizers', 'adam_tanh', seed=seed); h = pd.read_csv(f/'history.csv')
        h.assign(valid_accuracy=acc, seconds=a).to_csv(f/'history.csv', index=False)
    slow = fake_record(tmp_path, 'optimizers', 'sgd_tanh'); h = pd.read_csv(slow/'history.csv')
    h.assign(valid_accuracy=[.1, .5, .95], seconds=40.).to_csv(slow/'history.csv', index=False); _edit(slow, timing=dict(train_seconds=4.5))
    book = Book('quick', tmp_path)
    assert reached(pd.read_csv(slow/'history.csv'), .5) == (80., 2) and reached(pd.read_csv(slow/'history.csv'), .96) is None
    rows = [re.sub(r'<[^>]+>', ' ', r).split() for r in time_to(book).data.split('</tr>')]
    assert [r for r in rows if 'optimizers/adam_tanh' in r] == [[level, 'optimizers/adam_tanh', *t.split(), n, '2', '2', 'of', '2'] for level, t, n in (('30.0', '3 (2 to 4)', '1'), ('60.0', '6 (4 to 8)', '2'), ('70.0', '9 (6 to 12)', '3'))], rows
    assert [r[:3] for r in rows if 'optimizers/sgd_tanh' in r] == [['95.0', 'optimizers/sgd_tanh', '120']], rows
    assert '× 0.67' in plain(effects(book, 'optimizers', [('sgd_tanh', 'adam_tanh')]))

def test_costs_and_claims_keep_to_what_runs_are_judged_on(project, tmp_path):
    from imgcls.report import answer, cost_answer, cost_figures
    for run, acc in (('sgd_leakyrelu', .5), ('sgd_tanh', .6), ('adam_leakyrelu', .7)): fake_record(tmp_path, 'optimizers', run, accuracy=acc)
    few = fake_record(tmp_path, 'optimizers', 'adam_tanh', accuracy=.95); _edit(few, data=dict(images=dict(train=10, valid=40, test=60)), timing=dict(train_seconds=.1))
    book = Book('quick', tmp_path)
    said = plain(answer(book, 'optimizers'))
    assert 'Of 3 runs on digits with 200 validation images, adam_leakyrelu did best' in said and 'The one run on digits with 40 validation images, adam_tanh, reaches' in said
    assert 'adam_tanh' not in plain(cost_answer(book)) and 'digits (200 test images) optimizers/adam_leakyrelu (' in plain(cost_answer(book))
    assert 'adam_tanh' not in cost_figures(book).data and 'adam_leakyrelu' in cost_figures(book).data
    pre = fake_record(tmp_path, 'optimizers', 'adam_leakyrelu', accuracy=.7); _edit(pre, model=dict(weights='run:pretrain/mobilenet_v2'))
    assert 'optimizers/sgd_tanh (' in plain(cost_answer(Book('quick', tmp_path))) and 'pretraining not counted' in plain(cost_answer(Book('quick', tmp_path)))

def test_a_book_whose_first_seed_keeps_no_predictions(project, tmp_path):
    from imgcls.report import best_confusion, best_report, errors_answer, errors_section
    a, b = (fake_record(tmp_path, 'optimizers', 'adam_tanh', seed=s, accuracy=.6) for s in (0, 1))
    (a/'predictions.parquet').unlink(); book = Book('quick', tmp_path)
    assert 'adam_tanh, seed 1' in plain(best_confusion(book, 'optimizers')) and 'seed 1' in plain(best_report(book, 'optimizers')) and 'adam_tanh' in plain(errors_answer(book))
    (b/'predictions.parquet').unlink(); book = Book('quick', tmp_path)
    assert 'stay on the machine' in plain(best_confusion(book, 'optimizers')) and 'stay on the machine' in plain(errors_section(book)) and not plain(best_report(book, 'optimizers'))

def test_one_verdict_on_an_ensemble():
    from imgcls.report import Team, _again
    t = Team({}, {}, pd.DataFrame(dict(difference=[.006, .013, -.012]), index=['a', 'b', 'c']), dict(a=(None, .052), b=(None, 4e-5), c=(None, .002)))
    assert [t.verdict(k) for k in 'abc'] == ['no difference shown', 'more images right', 'fewer images right']
    found = lambda k, below: _again(dict(row=t.table.loc[k], verdict=t.verdict(k), ensemble=.7 if below else .9, best=.8))
    assert [found(k, True) for k in 'abc'] == ['no difference shown here', 'the opposite here', 'the same here'] and found('b', False) == 'the same here'

def test_compare_pairs_every_seed_with_a_record(project, tmp_path, monkeypatch):
    from tests.test_cli import call
    monkeypatch.setenv('IMGCLS_RESULTS', str(tmp_path))
    for seed in range(5):
        for run, acc in (('sgd_tanh', .5), ('adam_tanh', .7 + seed/100)):
            f = fake_record(tmp_path, 'optimizers', run, seed=seed, accuracy=acc)
            if seed: (f/'predictions.parquet').unlink() # as in a clone
    got = json.loads(call('compare', 'optimizers/sgd_tanh', 'optimizers/adam_tanh', '--json')[1])
    [acc] = [r for r in got['seeds'] if r['statistic'] == 'accuracy']
    assert acc['pairs'] == 5 and acc['difference'] == pytest.approx(.22) and acc['verdict'].startswith('gain') and len(got['images']) == 1
    text = call('compare', 'optimizers/sgd_tanh', 'optimizers/adam_tanh', '--seed', 1)[1]
    assert 'Over paired seeds' in text and 'Two trained models' not in text
    _edit(tmp_path/'quick/optimizers/adam_tanh/s0', data=dict(images=dict(train=10, valid=40, test=60)))
    status, text, _ = call('compare', 'optimizers/sgd_tanh', 'optimizers/adam_tanh')
    assert status == 0 and 'not compared: they are judged on other images' in text and 'test accuracy' in text

def test_published_settings_without_a_run_are_counted_one_by_one(project, tmp_path):
    from imgcls.report import beside, beside_tables
    fake_record(tmp_path, 'capacity', 'simple_32', accuracy=.5); book = Book('quick', tmp_path)
    [p] = [p for p in book.study('capacity').published if p.file and beside(book, 'capacity', p.file)]
    names = {b.runs.run if b.runs is not None else b.name for b in beside(book, 'capacity', p.file)}
    assert f'{len(names) - 1} more published settings have no run' in plain(beside_tables(book, 'capacity'))

def test_nothing_changed_is_quick(project, site):
    before = (site/'index.html').stat().st_mtime_ns
    assert build_book('quick') == site/'index.html' and (site/'index.html').stat().st_mtime_ns == before

def test_a_new_study_gets_the_general_page(site):
    page = (site/'mine.html').read_text()
    assert '<h1>A study of &lt;mine&gt;<' in page and 'Does it work?' in page and '50.0' in page and 'imgcls run mine' in text(site/'mine.html')
    assert 'mine.html' in (site/'index.html').read_text()

def test_the_ladder_stands_beside_the_published(site):
    page = text(site/'ladder.html')
    assert 'Noise floor' in page and 'VGG-19 body and head' in page and 'within noise' in page and 'step12' in page
    page = text(site/'published.html')
    for number in ('62.9', '65.0', '77.8'): assert number in page   # of generated100 and flowers, which have no record here
    assert 'not run' in page and 'other classes' in page

def test_a_browser_finds_no_fault(site, browser):
    assert re.search(r'<a href="runs/ablation/step\d+/s0.html"', (site/'ladder.html').read_text())   # or there would be no number to follow
    assert check(site, browser, every=False) == []

def test_the_browser_check_can_fail(site, browser, tmp_path):
    "Each kind of fault, put into a copy."
    bad = tmp_path/'site'; shutil.copytree(site, bad)
    css = bad/'_static/imgcls.css'; kept = css.read_text(); css.write_text(kept + '/*' + 'x'*1_000_000 + '*/')
    with served(bad) as base: assert 'bytes with all it loads' in str(Site(bad, base, browser).front_is_small())
    css.write_text(kept)
    f = bad/'index.html'
    f.write_text(f.read_text().replace('</article>', '<img alt="" src="data:,"><p style="color:#ddd;width:900px">pale</p><a href="gone.html">x</a><script>console.error("bad"); fetch("https://example.org/")</script></article>'))
    for record in (bad/'runs/ablation').rglob('s0.json'):
        d = json.loads(record.read_text())
        for x in ('valid', 'test'): d['metrics'][x] |= dict(accuracy=.999, macro_f1=.999)
        d['metrics']['max_valid_accuracy'] = .999; record.write_text(json.dumps(d))
    g = bad/'all_runs.html'; g.write_text(g.read_text().replace('_static/table.js', '_static/none.js'))
    assert any('gone.html leads nowhere' in x for x in check_site(bad))
    with served(bad) as base:
        s = Site(bad, base, browser)
        found = s.every_page(['index.html']) + s.accessible(['index.html'], ['light'])
        for words in ('does not load', 'no description', 'scrolls sideways', 'console: bad', 'asks another host', 'color-contrast'): assert any(words in x for x in found), words
        assert '99.9' in str(s.number_leads_to_its_record('ladder.html'))
        s.timeout = 6000
        assert s.search_finds('nosuchrunname', 'runs/')
        with pytest.raises(Exception): s.runs_sort()

def test_pages_load_nothing_they_do_not_use(site):
    assert 'searchindex.js' in (site/'search.html').read_text() and 'searchindex.js' not in (site/'index.html').read_text() + (site/'optimizers.html').read_text()
    fonts = sorted(f.name for f in (site/'_static/vendor/fontawesome/webfonts').iterdir())
    css = (site/'_static/styles/pydata-sphinx-theme.css').read_text()
    assert set(re.findall(r'webfonts/([^)]+)\)', css)) == set(fonts) and all(f.endswith('.woff') for f in fonts)
    assert '.fa-circle-half-stroke:before' in css and '.fa-dragon:before' not in css

def test_only_what_seeds_support_is_claimed(project, tmp_path):
    "Five paired seeds that agree are claimed, four are not; nor are five that scatter."
    root = tmp_path/'results'
    for seed in range(5):
        fake_record(root, 'optimizers', 'sgd_tanh', seed, .4 + .01*seed); fake_record(root, 'optimizers', 'adam_tanh', seed, .7 + .013*seed)
        fake_record(root, 'optimizers', 'sgd_leakyrelu', seed, (.3, .5)[seed % 2])
        if seed < 4: fake_record(root, 'optimizers', 'adam_leakyrelu', seed, .8 + .01*seed)
    book = Book('quick', root)
    d = comparisons(book, 'optimizers', [('sgd_tanh', 'adam_tanh'), ('adam_tanh', 'adam_leakyrelu'), ('sgd_tanh', 'sgd_leakyrelu')])
    assert d['verdict'].str.startswith('gain').tolist() == [True, False, False]
    said = supported(d)
    assert 'adam_tanh is 30.6 points above sgd_tanh' in said and '1 other comparison shows no difference that holds over the seeds; 1 has too few seeds to tell' in said and 'leakyrelu' not in said
    assert 'so none is claimed' in supported(d.iloc[1:2])

TOOK = dict(weights=dict(source='run:pretrain/mobilenet_v2 (quick, seed 0, 0123456789ab)', left_out=['imagenet: offline']))

def test_transfer_is_a_gain_only_where_seeds_support_it(project, tmp_path):
    root = tmp_path/'results'
    fake_record(root, 'pretrain', 'mobilenet_v2', accuracy=.5)
    for seed in range(5):
        fake_record(root, 'transfer', 'tiny_scratch_10', seed, .3 + .01*seed); fake_record(root, 'transfer', 'tiny_fine_tune_10', seed, .45 + .013*seed, notes=TOOK)
        fake_record(root, 'transfer', 'tiny_head_10', seed, (.2, .5)[seed % 2], notes=TOOK)
    for run, x in dict(cifar_scratch_10=.4, cifar_fine_tune_10=.6).items(): fake_record(root, 'transfer', run, accuracy=x, notes=TOOK if 'fine' in run else None)
    book = Book('quick', root)
    d = gains(book).set_index('b')
    assert d['claimed'].to_dict() == dict(tiny_fine_tune_10=True, tiny_head_10=False, cifar_fine_tune_10=False)
    assert d['verdict']['cifar_fine_tune_10'].startswith('not claimed: one seed') and d['name']['tiny_head_10'] == 'head alone'
    said = transfer_answer(book).data
    assert 'tiny_fine_tune_10 is 15.6 points above tiny_scratch_10' in said and '1 other comparison shows no difference that holds over the seeds; 1 has too few seeds to tell' in said
    assert re.search(r'digits <b><a[^>]*>cifar_fine_tune_10</a></b>, the best on valid, reaches <b><a[^>]*>60.0</a>', said) and '40.0' in said
    table = transfer_table(book).data
    assert 'href="runs/pretrain/mobilenet_v2/s0.html" title="imagenet: offline">pretrain/mobilenet_v2 (quick)' in table and 'head, then all (fine_tune)' in table
    assert 'not claimed: one seed' in gain_figure(book).data
    page = pretraining(book).data
    assert 'king penguin' in page and '12 classes of tinyimagenet32-b' in page and 'imgcls run transfer --profile full' in page and '3 runs' in page
    assert transfer_curves(book).data.count('<img') == 2
    assert 'imgcls run transfer' in transfer_answer(Book('cpu', root)).data and 'Not run yet' in pretraining(Book('cpu', root)).data

MEMBERS = {'capacity/simple_32': .5, 'capacity/complex_32': .6, 'capacity/medium_32': .7}

def test_ensembles_beside_their_best_member(project, tmp_path):
    root = tmp_path/'results'
    for name, x in MEMBERS.items(): fake_record(root, *name.split('/'), accuracy=x)
    for run, x in dict(average=.5, weighted=.7, vote=.95).items(): fake_record(root, 'ensembles', run, accuracy=x, notes=dict(members={k: 0 for k in MEMBERS}))
    book = Book('quick', root)
    said = plain(ensemble_answer(book))
    assert 'vote (majority vote), the best ensemble on valid, gets 95.0 % of the test images right and its best member capacity/medium_32 70.0 %: +25.0 points' in said and 'these two trained models' in said
    assert 'our average is at -20.0 points' in said and 'against its best member: the same here' in said and 'the same here' in said
    page = plain(ensemble_tests(book))
    assert 'two trained models on the same images, not two methods' in page and 'no difference shown' in page and 'differ' in page
    assert 'member, best on valid' in plain(ensemble_tables(book)) and '+1.2 points' in plain(ensemble_retests(book))
    pair = ensemble_confusion(book).data
    assert pair.count('<img') == 1 and 'cells changed' in pair
    matrix = pd.read_csv(io.BytesIO(base64.b64decode(re.search(r'href="data:text/csv;base64,([^"]+)" download="capacity-medium_32.csv"', pair)[1])), index_col=0)
    assert (matrix == book.confusion(book.run('capacity', 'medium_32'))).all(axis=None)
    assert 'imgcls run ensembles' in plain(ensemble_answer(Book('cpu', root)))
    fake_record(root, 'ensembles', 'average', accuracy=.9, notes=dict(members={k: 0 for k in MEMBERS}))
    assert 'the opposite here' in plain(ensemble_answer(Book('quick', root)))

def test_speed_ups_come_from_committed_measurements(project):
    book, f = Book('quick'), project/'results/bench/two-cores.json'
    assert 'imgcls bench --json' in plain(speedups(book))
    f.parent.mkdir(); before = book_key(book)
    f.write_text(json.dumps({'features': {'arch': 'mobilenet_v2', 'epochs': 10, 'images': 10000, 'features once, s': 40.5, 'body every time, s': 243., 'times faster': 6., 'cores': 2},
                             'training': {'convnet, batch 128: imgcls, images/s': 1137., 'convnet, batch 128: fastai on files, images/s': 355., 'convnet, batch 128: times fastai on files': 3.2, 'device': 'cpu', 'cores': 2},
                             'loaders': dict(times_faster={'torchvision v2, 0 workers': 40.1}, images_per_second={'imgcls': 90000., 'torchvision v2, 0 workers': 2245.}, cores=2),
                             'runner': dict(runs=10, papermill_start=10., start=2., row=120., two_jobs=30., cores=2)}))
    try:
        page = plain(speedups(book))
        for shown in ('40.5 s', '6.0', '1,137 images/s', '3.2', '40.1', '5.0', 'two-cores.json', 'CPU, 2 cores'): assert shown in page, shown
        assert book_key(book) != before
    finally: shutil.rmtree(f.parent)

def test_the_readme_says_what_the_records_say(monkeypatch):
    monkeypatch.setenv('IMGCLS_PROJECT', str(ROOT)); monkeypatch.setenv('IMGCLS_RESULTS', str(ROOT/'results')); monkeypatch.chdir(ROOT)
    assert readme_is_stale() == ''

def test_a_stale_readme_is_found(project, tmp_path, monkeypatch):
    for f in ('README.md',): (project/f).write_text(f'# x\n{MARKS[0]}\nold\n{MARKS[1]}\nend\n')
    assert 'make readme' in readme_is_stale()
    assert write_readme() and readme_is_stale() == '' and not write_readme() and readme_parts()[1] is None   # no records of cpu or full
    monkeypatch.setenv('IMGCLS_RESULTS', str(tmp_path/'results'))
    fake_record(tmp_path/'results', 'optimizers', 'adam_tanh', accuracy=.71, profile='cpu')
    assert readme_is_stale() and write_readme() and '71.0' in (project/'README.md').read_text() and (project/'README.md').read_text().endswith('end\n')
    assert readme_is_stale() == ''
    (project/'nbs/images/readme.png').unlink()
    assert 'readme.png' in readme_is_stale()
    fake_record(tmp_path/'results', 'optimizers', 'sgd_tanh', accuracy=.5, profile='cpu')
    assert readme_is_stale()

def test_one_accuracy_changed_by_hand_changes_all(project, site):
    edit_accuracy(project/'results/quick/optimizers/adam_leakyrelu/s0', .5123)
    build_book('quick')
    page, front = (site/'optimizers.html').read_text(), (site/'index.html').read_text()
    assert re.search(r'<a[^>]*>51.2</a>', page) and '74.5</a> <span class="ci">(' not in page   # weighted averages come from the predictions, which were left alone
    assert re.search(r'class="answer".*?51\.2', page, re.S)                 # the sentence
    assert len(re.findall(r'51\.2', front)) >= 2                            # front page: sentence and leaderboard

def test_a_page_says_which_command_made_its_numbers(project, tmp_path):
    said = lambda **kw: plain(provenance(Book('quick', tmp_path), **kw))
    assert 'No record' in said(study='optimizers') and 'Made by' not in said(study='optimizers')
    fake_record(tmp_path, 'optimizers', 'adam_tanh')
    assert 'Made by imgcls run optimizers --profile quick;' in said(study='optimizers')
    fake_record(tmp_path, 'optimizers', 'adam_tanh', seed=7)
    assert 'Made by imgcls run optimizers --profile quick, for some runs with further --seeds;' in said(study='optimizers')
    old = tmp_path/'quick'/'gone'/'adam_tanh'/'s0' # of a study that has been deleted since
    shutil.copytree(tmp_path/'quick/optimizers/adam_tanh/s0', old)
    d = json.loads((old/'record.json').read_text()); d['study'] = 'gone'; (old/'record.json').write_text(json.dumps(d))
    assert '3 records of the profile quick' in said()

def test_two_builders_take_turns(project, monkeypatch):
    import imgcls.report as report
    inside, most = [], []
    def built(*_): inside.append(1); most.append(len(inside)); time.sleep(.2); inside.pop()
    monkeypatch.setattr(report, '_built', built)
    threads = [threading.Thread(target=report.build_book, args=('quick',)) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert most == [1, 1, 1]

def test_a_missing_notebook_fails_the_build(project, site):
    f = project/'results/quick/optimizers/sgd_tanh/s0/run.ipynb'
    kept = f.read_bytes(); f.unlink()
    try:
        edit_accuracy(f.parent, .43)
        with pytest.raises(BadInput, match='run.ipynb'): build_book('quick')
    finally: f.write_bytes(kept)

def test_notebooks_of_later_seeds_may_stay_where_they_ran(project, tmp_path):
    f = project/'results/quick/optimizers/adam_tanh/s1/run.ipynb'
    kept, q = f.read_bytes(), f.with_name('predictions.parquet'); f.unlink(); q.rename(tmp_path/'kept')
    try:
        verify_record(f.parent); book = Book('quick'); stage_runs(book, tmp_path); about = (tmp_path/'runs/optimizers/adam_tanh/about.md').read_text()
        assert 's0.html' in about and 's1.html' not in about and 'not kept' in about and not (tmp_path/'runs/optimizers/adam_tanh/s1.ipynb').exists()
        assert '1 of later seeds: notebook only on' in plain(all_runs_answer(book))
    finally: f.write_bytes(kept); (tmp_path/'kept').rename(q)
    g = f.parents[1]/'s0'/'run.ipynb'; kept = g.read_bytes(); g.unlink()
    try:
        with pytest.raises(BadInput, match='run.ipynb: missing'): verify_record(g.parent)
    finally: g.write_bytes(kept)

def test_an_empty_profile_says_what_to_do(project, tmp_path):
    page = text(build_book('cpu', out=tmp_path/'site').parent/'optimizers.html')
    assert 'imgcls run optimizers --profile cpu' in page
