"Figures: what they show equals their data, they can be read, and they say it in words."
import base64, io, re, subprocess, sys

import matplotlib; matplotlib.use('agg')
import matplotlib as mpl, matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from PIL import Image

from imgcls import plots as pl
from imgcls.params import BadInput


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')

R = np.random.default_rng

def confusion(n, each=50, seed=0, names=None):
    r, names = R(seed), names or [f'class {i}' for i in range(n)]
    m = np.stack([r.multinomial(each, np.full(n, .2/n) + .6*(np.arange(n) == i) + .2*(np.arange(n) == (i*7+3) % n)) for i in range(n)])
    return pd.DataFrame(m, pd.Index(names, name='true'), pd.Index(names, name='predicted'))

def history(n=8, top=.7, seed=0):
    e, r = np.arange(1, n+1), R(seed)
    acc = top*(1-np.exp(-e/3)) + r.normal(0, .01, n)
    return pd.DataFrame(dict(epoch=e, phase=1+(e > n//2), lr=.1*.7**e, train_loss=2-acc, train_accuracy=acc+.03, valid_loss=2.1-acc, valid_accuracy=acc, seconds=3.))

def images(n, side=32): return R(0).integers(0, 256, (n, side, side, 3), np.uint8)

LADDER = pd.DataFrame(dict(mean=[.24, .49, np.nan], low=[.23, .47, np.nan], high=[.25, .51, np.nan], verdict=['', 'gain (5 seeds)', '']), index=['base', 'vgg', 'late'])
RUNS = pd.DataFrame(dict(run=['a', 'b', 'c'], train_seconds=[10., 100, 90], parameters=[1e5, 2e6, 3e6], test_accuracy=[.3, .7, .69], kind=['x', 'x', 'y']))
TRIALS = pd.DataFrame(dict(lr=[1e-4, 1e-2, 1.], momentum=[.1, .5, .9], max_valid_accuracy=[.2, .6, .01]))
REPORT = pd.DataFrame(dict(f1=[.9, .2, .5, .53, .53]), index=['cat', 'dog', 'owl', 'macro avg', 'weighted avg'])
WORST = pd.DataFrame(dict(id=list('ab'), true=['cat', 'dog'], predicted=['owl', 'cat'], p_true=[0., .02], p_predicted=[.99, .7]))
PAIRS = pd.DataFrame(dict(true=['cat', 'dog'], predicted=['owl', 'cat'], images=[9, 4], share=[.3, .1]))
REL = pd.DataFrame(dict(confidence=[.3, .7, .95], accuracy=[.2, .6, .9], images=[10, 20, 70]))

FIGURES = dict(
    curves=lambda: pl.plot_curves({'adam': history(), 'sgd': [history(6, .6, s) for s in range(3)]}),
    curves_two=lambda: pl.plot_curves({'adam': history(), 'sgd': history(6, .6)}, ['valid_loss', 'train_loss']),
    curves_many=lambda: pl.plot_curves({f'a long run name {i}': history(8, .3+.04*i, i) for i in range(12)}),
    one_epoch=lambda: pl.plot_curves({'adam': history(1)}),
    lr_find=lambda: pl.plot_lr_find(np.geomspace(1e-6, 1, 50), np.r_[np.linspace(2, 1, 40), np.geomspace(1, 50, 10)], {'valley': 1e-3}),
    **{f'confusion_{n}': (lambda n=n: pl.plot_confusion(confusion(n))) for n in (2, 10, 25, 26, 100, 200)},
    **{f'pair_{n}': (lambda n=n: pl.plot_confusion_pair(confusion(n), confusion(n, seed=1), ('best', 'vote'))) for n in (3, 10, 20, 100)},
    show_images=lambda: pl.show_images(images(9), [f'a rather long class name {i}' for i in range(9)], title='a batch'),
    losses=lambda: pl.show_losses(images(2), WORST), confused=lambda: pl.show_confused(PAIRS, [images(6), images(1)]),
    ladder=lambda: pl.plot_ladder(LADDER, dict(base=24, vgg=.49), dict(vgg='VGG-19 body and head in place of the small network, one long label that has to be broken')),
    published=lambda: pl.plot_published(pd.DataFrame(dict(ours=[.6, .7], published=[65., .75]), index=['cnn', 'vgg'])),
    tradeoff=lambda: pl.plot_tradeoff(RUNS, group='kind'), parameters=lambda: pl.plot_tradeoff(RUNS, 'parameters'),
    search=lambda: pl.plot_search(TRIALS), best=lambda: pl.plot_best_so_far({'random': [R(s).random(9) for s in range(4)], 'one': [.1, .3, .2]}),
    counts=lambda: pl.plot_class_counts(pd.DataFrame(dict(train=[40, 30], valid=[4, 3], test=[10, 10]), index=['cat', 'dog'])),
    counts_many=lambda: pl.plot_class_counts(pd.Series(range(1, 101), [f'c{i}' for i in range(100)], name='train')),
    schedule=lambda: pl.plot_schedule(history()), schedules=lambda: pl.plot_schedule({'a': history(), 'b': history(4)}),
    epoch_time=lambda: pl.plot_epoch_time(pd.DataFrame(dict(size=[32, 64, 128], seconds=[30, 100, 400])), pd.DataFrame(dict(size=[32, 128], seconds=[27, 270]))),
    scores=lambda: pl.plot_class_scores(REPORT), scores_many=lambda: pl.plot_class_scores(pd.DataFrame(dict(f1=R(0).random(60)), index=[f'c{i}' for i in range(60)])),
    reliability=lambda: pl.plot_reliability({'raw': REL, 'scaled': REL.assign(accuracy=REL.confidence)}))

def texts(fig):
    "Texts that are drawn: a tick beyond the limits is not."
    hidden = {id(t) for ax in fig.axes for axis in (ax.xaxis, ax.yaxis) for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
              if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval()) for t in (tick.label1, tick.label2)}
    return [t for t in fig.findobj(mpl.text.Text) if t.get_visible() and t.get_text().strip() and id(t) not in hidden]


@pytest.mark.parametrize('name', FIGURES)
def test_every_figure_is_readable_described_and_leaves_no_trace(name):
    before = dict(mpl.rcParams)
    ax = FIGURES[name]()
    assert dict(mpl.rcParams) == before
    for a in np.ravel(ax): assert isinstance(a, plt.Axes)
    fig, alt = np.ravel(ax)[0].figure, pl.alt_text(ax)
    assert 30 < len(alt) and alt.endswith('.') and '\n' not in alt and 'nan' not in alt.lower()
    assert fig.get_facecolor() == (1, 1, 1, 1) # readable on a dark page
    html = pl.figure_html(ax).data
    assert not plt.fignum_exists(fig.number) # not shown twice
    width = int(re.search(r'width="(\d+)"', html)[1])
    assert width <= 730 and 'alt="' in html
    shrink = min(1, 700/width)
    for t in texts(fig):
        assert t.get_fontsize()*100/72*shrink >= 9, (t.get_text(), t.get_fontsize())
    for a in fig.axes: # what a number means is written at it
        if a.axison and name.split('_')[0] not in ('show', 'losses', 'confused') and a in np.ravel(ax): assert a.get_xlabel()

@pytest.mark.parametrize('name', [n for n in FIGURES if not n.startswith('confusion_') and not n.startswith('pair_')])
def test_no_text_covers_another(name):
    fig = np.ravel(FIGURES[name]())[0].figure
    fig.draw_without_rendering()
    boxes = [(t.get_text(), t.get_window_extent().shrunk(.9, .7)) for t in texts(fig) if t.get_window_extent().width > 0]
    for i, (s, b) in enumerate(boxes):
        for t, c in boxes[:i]: assert not b.overlaps(c), (s, t)


def test_description_is_the_data():
    h = history()
    alt = pl.alt_text(pl.plot_curves({'adam': h}))
    assert f'ends at {100*h.valid_accuracy.iloc[-1]:.4g}' in alt and f'at epoch {h.epoch[h.valid_accuracy.idxmax()]}' in alt
    assert pl.alt_text(pl.plot_curves({'adam': h}, 'valid_loss')).count('lowest') == 1
    cm = confusion(40)
    i, j = np.unravel_index((cm.to_numpy()*(1-np.eye(40, dtype=int))).argmax(), (40, 40))
    assert f'Most confused: class {i} taken for class {j} {cm.iloc[i, j]} times' in pl.alt_text(pl.plot_confusion(cm))
    assert 'base 24.0 (23.0 to 25.0), published 24.0; vgg 49.0 (47.0 to 51.0), published 49.0, gain (5 seeds); late not run' in pl.alt_text(FIGURES['ladder']())
    assert 'Best: 60.0 per cent at learning rate 0.01 and momentum 0.5' in pl.alt_text(FIGURES['search']())
    fig, ax = plt.subplots()
    with pytest.raises(BadInput, match='has no description'): pl.alt_text(ax)

def test_show_is_a_picture_with_its_description():
    ax = pl.plot_curves({'a <b> "c"': history()})
    data = pl.figure_html(ax).data
    assert 'alt="Line chart' in data and '<b>' not in data and '&lt;b&gt; &quot;c&quot;' in data
    png = Image.open(io.BytesIO(base64.b64decode(re.search(r'base64,([^"]+)', data)[1])))
    assert png.format == 'WEBP' and png.width > 850 and png.convert('RGBA').getpixel((2, 2)) == (255,)*4

def test_a_run_at_chance_is_a_flat_line():
    h = history(); h['valid_accuracy'] = [.01]*(len(h) - 1) + [.0098]
    low, high = pl.plot_curves({'a': h}).get_ylim()
    assert (low, high) == pytest.approx((0, 1.99)) and np.ptp(pl.plot_curves({'a': history()}).get_ylim()) > 2

def test_curves_draw_what_they_were_given():
    hs = [history(8, .6, s) for s in range(3)]; hs[2] = hs[2].iloc[:5]
    ax = pl.plot_curves({'sgd': hs, 'adam': history()})
    thick = [l for l in ax.lines if l.get_label() == 'sgd'][0]
    np.testing.assert_allclose(thick.get_ydata(), 100*np.mean([h.valid_accuracy[:5] for h in hs], 0)) # epochs all reached
    assert {l.get_label() for l in ax.lines if not l.get_label().startswith('_')} == {'sgd', 'adam'}
    looks = [(l.get_color(), l.get_linestyle()) for l in pl.plot_curves({f'r{i}': history() for i in range(20)}).lines if l.get_label().startswith('r')]
    assert len(set(looks)) == 20
    with pytest.raises(BadInput, match="no column 'valid_acc'.*did you mean 'valid_accuracy'"): pl.plot_curves({'a': history()}, 'valid_acc')
    with pytest.raises(BadInput, match='no histories'): pl.plot_curves({})

@pytest.mark.parametrize('n', [10, 25])
def test_small_confusion_shows_its_counts_and_leaves_empty_cells_blank(n):
    cm = confusion(n)
    ax = pl.plot_confusion(cm)
    shown = {(round(t.get_position()[1]), round(t.get_position()[0])): int(t.get_text()) for t in ax.texts}
    assert shown == {(i, j): cm.iloc[i, j] for i in range(n) for j in range(n) if cm.iloc[i, j]}
    image = ax.images[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(image), cm.to_numpy() == 0)

@pytest.mark.parametrize('n', [26, 100, 200])
def test_large_confusion_names_the_most_confused_and_is_a_reordering(n):
    cm = confusion(n)
    ax = pl.plot_confusion(cm)
    order = pl.class_order(cm)
    assert sorted(order) == list(range(n))
    m = cm.to_numpy()[np.ix_(order, order)]
    np.testing.assert_allclose(ax.images[0].get_array().filled(0), m/m.sum(1, keepdims=True))
    np.testing.assert_array_equal(np.ma.getmaskarray(ax.images[0].get_array()), m == 0)
    words = '\n'.join(t.get_text() for t in ax.texts)
    off = (cm.to_numpy()*(1-np.eye(n, dtype=int)))
    i, j = np.unravel_index(off.argmax(), off.shape)
    assert f'{off[i, j]} (' in words and words.count('→') == 9 # eight pairs and the heading
    from imgcls.evaluation import most_confused
    table = most_confused(cm, 8) # ties are broken alike in table and figure
    for k, r in enumerate(table.itertuples()): assert f'{k+1}  {r.true} → {r.predicted}: {r.images} (' in words
    rings = [l for l in ax.lines if l.get_marker() == 'o']
    assert len(rings) == 8 and all(m[int(l.get_ydata()[0]), int(l.get_xdata()[0])] > 0 for l in rings)

def test_similar_classes_come_to_lie_together():
    # three blocks of classes that are only taken for one another, scattered over the alphabet
    block = np.arange(30) % 3
    m = np.where(block[:, None] == block, 5, 0) + 50*np.eye(30, dtype=int)
    order = pl.class_order(pd.DataFrame(m, list('abcdefghijklmnopqrstuvwxyzABCD'), list('abcdefghijklmnopqrstuvwxyzABCD')))
    assert (np.diff(block[order]) != 0).sum() == 2

def test_pair_marks_just_the_changed_cells():
    a = confusion(5); b = a.copy()
    b.iloc[0, 0] += 2; b.iloc[0, 1] = max(0, b.iloc[0, 1]-1); b.iloc[3, 4] += 7
    changed = int((a != b).to_numpy().sum())
    axs = pl.plot_confusion_pair(a, b, ('best', 'vote'))
    assert not axs[0].patches and len(axs[1].patches) == changed
    marked = {tuple(np.round([p.get_y()+.45, p.get_x()+.45]).astype(int)): p.get_edgecolor() for p in axs[1].patches}
    assert marked[0, 0][:3] == pl.COLORS[0] and marked[3, 4][:3] == pl.COLORS[3]
    assert f'{changed} cells changed' in pl.alt_text(axs) and 'class 3 taken for class 4 +7' in pl.alt_text(axs)
    with pytest.raises(BadInput, match="class 4 is 'class 4' in best and 'z' in vote"):
        pl.plot_confusion_pair(a, b.rename({'class 4': 'z'}).rename({'class 4': 'z'}, axis=1), ('best', 'vote'))
    with pytest.raises(BadInput, match='5 classes in first and 4 in second'): pl.plot_confusion_pair(a, a.iloc[:4, :4])

def test_published_is_per_cent_unless_below_one():
    ax = pl.plot_published(pd.DataFrame(dict(ours=[.6, .7, .01], published=[65., .75, 1]), index=['cnn', 'vgg', 'lost']))
    diamonds = [l for l in ax.lines if l.get_label() == 'published'][0]
    np.testing.assert_allclose(diamonds.get_xdata(), [65, 75, 1])
    with pytest.raises(BadInput, match='60 is no share'): pl.plot_published(pd.DataFrame(dict(ours=[60.], published=[65.])))

def test_best_so_far_is_a_running_maximum_with_a_t_interval():
    from scipy import stats
    runs = [R(s).random(7) for s in range(4)]
    ax = pl.plot_best_so_far({'random': runs})
    best = 100*np.maximum.accumulate(runs, axis=1)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), best.mean(0))
    low, high = stats.t.interval(.95, 3, best[:, -1].mean(), stats.sem(best[:, -1]))
    y = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert np.isclose(y, max(low, 0)).any() and np.isclose(y, min(high, 100)).any()

def test_names_of_points_cover_nothing():
    r = R(3)
    d = pd.DataFrame(dict(run=[f'network {i}' for i in range(14)], train_seconds=10**r.uniform(1, 4, 14), test_accuracy=r.uniform(.2, .9, 14)))
    ax = pl.plot_tradeoff(d)
    ax.figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in ax.texts if t.get_text().startswith('network')]
    assert len(boxes) == 14 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    with pytest.raises(BadInput, match='positive numbers'): pl.plot_tradeoff(d.assign(train_seconds=0))

def test_pictures_keep_their_pixels():
    im = images(3)
    axs = pl.show_images(im, ['a', 'b', 'c'])
    for a, i in zip(axs.flat, im):
        np.testing.assert_array_equal(a.images[0].get_array(), i); assert a.images[0].get_interpolation() == 'nearest'
    assert pl.show_images(images(6)).shape == (2, 3) # rows of equal length
    for bad, text in ((lambda: pl.show_images(images(2), ['a']), '1 titles for 2'), (lambda: pl.show_images(np.zeros((0, 2, 2, 3))), 'at least 1'), (lambda: pl.show_confused(PAIRS, [images(1)]), '2 pairs and examples of 1')):
        with pytest.raises(BadInput, match=text): bad()

def test_colours_survive_colour_blindness():
    # Machado et al. (2009), severity 1: what is left of red-green difference
    deuter = np.array([[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]])
    protan = np.array([[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]])
    ramp = pl._RAMP(np.linspace(0, 1, 50))[:, :3]
    for m in (np.eye(3), deuter, protan):
        seen = np.clip(ramp**2.2 @ m.T, 0, 1)
        assert (np.diff(seen @ [.2126, .7152, .0722]) < 0).all() # darker all the way
        four = np.clip(np.array(pl.COLORS[:4])**2.2 @ m.T, 0, 1)**(1/2.2)
        assert min(np.linalg.norm(a-b) for i, a in enumerate(four) for b in four[:i]) > .1
    assert len(set(map(str, pl.DASHES))) == len(set(pl.MARKERS)) == 10

def test_imports_nothing_of_the_house_but_params():
    code = "import sys, imgcls.plots; print(sorted(m for m in sys.modules if m.startswith('imgcls.') or m in ('torch', 'sklearn', 'fastai')))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == "['imgcls.params', 'imgcls.plots']"
