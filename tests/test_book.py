"The book says what the records say, in the table, in the sentence and on the front page, and a browser can read it."
import functools, http.server, os, re, threading
from pathlib import Path

import pytest

from imgcls.params import BadInput
from imgcls.report import Book, build_book, check_site
from tests.browser import find_browser
from tests.fixtures import edit_accuracy, fake_record, make_project

ACCURACY = dict(sgd_leakyrelu=.41, sgd_tanh=.425, adam_leakyrelu=.745, adam_tanh=.73)

@pytest.fixture(scope='module')
def project(tmp_path_factory):
    root = make_project(tmp_path_factory.mktemp('project'))
    with pytest.MonkeyPatch.context() as m:
        m.setenv('IMGCLS_PROJECT', str(root)); m.setenv('IMGCLS_RESULTS', str(root/'results')); m.chdir(root)
        for run, acc in ACCURACY.items(): fake_record(root/'results', 'optimizers', run, accuracy=acc)
        fake_record(root/'results', 'optimizers', 'adam_tanh', seed=1, accuracy=.70)
        yield root

@pytest.fixture(scope='module')
def site(project): return build_book('quick').parent

def text(f): return re.sub(r'<[^>]+>', '', Path(f).read_text(encoding='utf-8'))

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

def test_nothing_changed_is_quick(project, site):
    before = (site/'index.html').stat().st_mtime_ns
    assert build_book('quick') == site/'index.html' and (site/'index.html').stat().st_mtime_ns == before

def test_browser_reads_the_book(site, browser_page):
    page, problems = browser_page
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f'http://127.0.0.1:{server.server_port}'
    try:
        page.goto(f'{base}/optimizers.html', wait_until='networkidle')
        body = page.inner_text('article')
        for shown in ('41.0', '42.5', '74.5', '71.5'): assert shown in body
        loaded = page.evaluate("[...document.querySelectorAll('article img')].filter(i => i.complete && i.naturalWidth > 50).length")
        assert loaded >= 2
        assert page.evaluate("[...document.querySelectorAll('article img')].every(i => i.alt.length > 20)")
        page.click('article table a:text-is("74.5")')
        assert 'test accuracy 0.7450' in page.inner_text('article')
        page.set_viewport_size(dict(width=390, height=800))
        for name in ('index', 'optimizers', 'all_runs', 'environment'):
            page.goto(f'{base}/{name}.html', wait_until='networkidle')
            assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth + 1'), f'{name} scrolls sideways on a phone'
        assert not problems
    finally: server.shutdown()

def test_one_accuracy_changed_by_hand_changes_all(project, site):
    edit_accuracy(project/'results/quick/optimizers/adam_leakyrelu/s0', .5123)
    build_book('quick')
    page, front = (site/'optimizers.html').read_text(), (site/'index.html').read_text()
    assert re.search(r'<a[^>]*>51.2</a>', page) and '74.5</a> <span class="ci">(' not in page   # weighted averages come from the predictions, which were left alone
    assert re.search(r'class="answer".*?51\.2', page, re.S)                 # the sentence
    assert len(re.findall(r'51\.2', front)) >= 2                            # front page: sentence and leaderboard

def test_a_missing_notebook_fails_the_build(project, site):
    f = project/'results/quick/optimizers/sgd_tanh/s0/run.ipynb'
    kept = f.read_bytes(); f.unlink()
    try:
        edit_accuracy(f.parent, .43)
        with pytest.raises(BadInput, match='run.ipynb'): build_book('quick')
    finally: f.write_bytes(kept)

def test_an_empty_profile_says_what_to_do(project, tmp_path):
    page = text(build_book('cpu', out=tmp_path/'site').parent/'optimizers.html')
    assert 'imgcls run optimizers --profile cpu' in page
