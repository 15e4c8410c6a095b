"Checks: what they find, what they must not find, and that their report is whole and safe to show."
import json, os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageEnhance

from imgcls.checks import _candidates, check_data, near_pairs, phash, plot_pairs, plot_samples
from imgcls.data import load_data

@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv('IMGCLS_CACHE', str(tmp_path/'cache'))

rng = np.random.RandomState(0)
def photo(): return Image.fromarray(rng.randint(0, 256, (12, 12, 3), np.uint8)).resize((48, 48), 2)
def put(root, path, im=None, **kw): f = root/path; f.parent.mkdir(parents=True, exist_ok=True); (im or photo()).save(f, **kw); return f
def base(root, classes=('cat', 'dog'), n=6):
    for s in ('train', 'test'):
        for c in classes:
            for k in range(n): put(root, f'{s}/{c}/{k}.png')
    return root
def kinds(r): return {f.kind: f.count for f in r.findings}

def test_clean_data_has_no_findings(tmp_path):
    r = check_data(str(base(tmp_path/'p')))
    assert r.findings == [] and r.problems == [] and 'nothing found' in r.to_text()
    assert r.table.loc[['cat', 'dog', 'total']].values.tolist() == [[6, 6, 12], [6, 6, 12], [12, 12, 24]]

@pytest.mark.parametrize('make, found', [
    (lambda r: put(r, 'test/cat/x.png', Image.open(r/'train/cat/0.png')), {'leak': 1}),
    (lambda r: put(r, 'train/dog/x.png', Image.open(r/'train/cat/0.png')), {'conflict': 1, 'copies': 1}),
    (lambda r: put(r, 'train/cat/x.png', Image.open(r/'train/cat/0.png')), {'copies': 1}),
    (lambda r: put(r, 'test/cat/x.jpg', Image.open(r/'train/cat/0.png'), quality=90), {'near leak': 1}),
    (lambda r: put(r, 'test/cat/x.png', Image.open(r/'train/cat/0.png').transpose(0)), {'near leak': 1}),
    (lambda r: put(r, 'train/dog/x.png', ImageEnhance.Brightness(Image.open(r/'train/cat/0.png')).enhance(.95)), {'near conflict': 1, 'near copies': 1}),
    (lambda r: (r/'train/cat/x.png').write_bytes(b'no image'), {'unreadable': 1}),
    (lambda r: [put(r, f'train/cat/y{k}.png') for k in range(9)], {'imbalance': 1}),
    (lambda r: put(r, 'train/cat/x.png', photo().resize((30, 60))), {'sizes': 2}),
])
def test_each_fault_is_found_and_nothing_else(tmp_path, make, found):
    r = base(tmp_path/'p'); make(r); report = check_data(str(r))
    assert kinds(report) == found
    assert bool(report.problems) == (set(found).isdisjoint({'copies', 'imbalance', 'sizes'}) or 'conflict' in found or 'near conflict' in found)

def test_two_datasets(tmp_path):
    a, b = base(tmp_path/'a'), base(tmp_path/'b', ('Cat', 'fox'))
    assert kinds(check_data(str(a), str(b))) == {'common classes': 1}
    put(b, 'train/fox/x.png', Image.open(a/'test/dog/3.png')); put(b, 'test/fox/y.jpg', Image.open(a/'train/dog/1.png'), quality=85)
    r = check_data(str(a), str(b)); assert kinds(r) == {'common classes': 1, 'overlap': 2} and '1 of them equal' in r.to_text()
    assert {tuple(e) for f in r.findings if f.kind == 'overlap' for e in f.examples} == {('test/dog/3.png', 'train/fox/x.png'), ('train/dog/1.png', 'test/fox/y.jpg')}
    assert plot_pairs(r).shape == (2, 2)

def test_flat_and_similar_pictures_are_not_copies():
    flat = np.stack([np.full((32, 32, 3), v, np.uint8) for v in range(0, 250, 5)])
    assert near_pairs(flat) == []
    waves = load_data('synthetic:classes=3,size=32,train=200,test=2').images # one class's pictures share colours, shape and texture
    assert near_pairs(waves) == []

def test_pairs_agree_with_comparing_all():
    "Bands lose no pair within 3 bits, and find each pair once."
    x = np.stack([np.asarray(photo()) for _ in range(150)])
    x = np.concatenate([x, np.clip(x[:40].astype(int) + rng.randint(-6, 7, x[:40].shape), 0, 255).astype(np.uint8)])
    h = phash(x); i, j = np.triu_indices(len(x), 1); close = np.bitwise_count(h[i] ^ h[j]) <= 3
    got = {(a, b) for a, b, _, m in near_pairs(x) if not m}
    assert set(zip(i[close].tolist(), j[close].tolist())) <= got <= {(k, 150+k) for k in range(40)} and close.sum() > 5

@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**64-1), min_size=2, max_size=30), st.sets(st.integers(0, 63), max_size=3))
def test_hashes_three_bits_apart_always_meet(hashes, flip):
    a = np.array(hashes, np.uint64); b = a ^ np.uint64(sum(1 << k for k in flip))
    assert {(k, k) for k in range(len(a))} <= {tuple(p) for p in _candidates(a, b, 10).tolist()}

class Tags(HTMLParser):
    def __init__(self): super().__init__(); self.tags = set()
    def handle_starttag(self, tag, attrs): self.tags.add(tag)

def test_report_is_whole_and_names_are_escaped(tmp_path):
    odd = ('<script>alert(1)', 'Blüte $x$', "o'hara \"q\"")
    r = base(tmp_path/'p', odd); put(r, f'test/{odd[0]}/x.png', Image.open(r/f'train/{odd[1]}/0.png'))
    report = check_data(str(r))
    d = json.loads(report.to_json())
    assert d['schema'] == 1 and set(d['counts']['train']) == set(odd) and d['findings'][0]['kind'] == 'leak' and d['fingerprint'] == report.fingerprint
    t = Tags(); t.feed(report.to_html()); assert t.tags <= {'ul', 'li', 'b', 'code', 'p'} and '&lt;script&gt;' in report.to_html()
    plot_pairs(report)[0, 0].figure.savefig(tmp_path/'f.png'); plot_samples(load_data(str(r)), 3).figure.savefig(tmp_path/'g.png') # $x$ is no formula
    assert report.summary.columns.tolist() == ['kind', 'level', 'count', 'finding', 'example'] and len(report.summary) == len(report.findings)

@pytest.mark.parametrize('side, found', [(48, {}), (24, {'sharpness': 1})])
def test_a_split_scaled_in_another_way_is_found(tmp_path, side, found):
    for k in range(110): put(tmp_path/'p', f'train/{"ab"[k%2]}/{k}.png', photo().resize((side, side), 2).resize((48, 48), 2)); put(tmp_path/'p', f'test/{"ab"[k%2]}/{k}.png')
    r = check_data(str(tmp_path/'p'))
    assert kinds(r) == found and bool(r.problems) == bool(found)
    assert not found or 'images of test are ' in r.problems[0].text and 'times as sharp as those of train' in r.problems[0].text

REAL = os.environ.get('IMGCLS_DATA') or str(Path(__file__).resolve().parents[2]/'shared'/'data')
needs = pytest.mark.skipif(not Path(REAL, 'tinyimagenet32-a.tgz').exists(), reason=f'needs tinyimagenet32-a.tgz in IMGCLS_DATA ({REAL})')

@needs
def test_published_data_holds_copies_under_two_labels(monkeypatch):
    monkeypatch.setenv('IMGCLS_DATA', REAL)
    r = check_data('tinyimagenet32-a')
    assert kinds(r)['conflict'] == 8 and 'leak' not in kinds(r) and 'sharpness' in kinds(r)
    assert ['train/mantis/n02236044_366.jpg', 'train/walking_stick/n02231487_227.jpg'] in next(f.examples for f in r.findings if f.kind == 'conflict')
