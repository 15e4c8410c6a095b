"""A built book in a headless browser: `python tests/check_site.py site/quick`, exit status 1 and a line for each problem.
Every page: links, pictures with descriptions, console errors, requests to other hosts, width of a phone. A few in both themes: axe-core, WCAG 2 A and AA."""
import contextlib, functools, http.server, json, re, sys, threading
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import TimeoutError

from imgcls.report import check_site

WCAG = dict(runOnly=dict(type='tag', values=['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']))
FRONT_MAX = 1_000_000 # bytes of the front page with all it loads, before any compression

class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass

@contextlib.contextmanager
def served(site:Path):
    "The site's address while it is served from this machine."
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}'
    finally: server.shutdown(); server.server_close()

class Site:
    "Checks of a served site; each returns its problems as lines."
    timeout = 30_000 # milliseconds that a page may take to show something
    def __init__(self, site:Path, base:str, browser):
        self.site, self.base, self.browser = Path(site), base, browser
        self.names = sorted(str(f.relative_to(self.site)) for f in self.site.rglob('*.html') if '_static' not in f.parts)
        self.pages = [n for n in self.names if '/' not in n and n not in ('search.html', 'genindex.html')]

    @contextlib.contextmanager
    def page(self, width=1300, scheme='light'):
        context = self.browser.new_context(viewport=dict(width=width, height=900), color_scheme=scheme, reduced_motion='reduce')
        context.set_default_timeout(self.timeout)
        try: yield context.new_page()
        finally: context.close()

    def every_page(self, names=None):
        out = []
        with self.page() as page:
            where = ['']
            page.on('console', lambda m: out.append(f'{where[0]}: console: {m.text}') if m.type == 'error' else None)
            page.on('pageerror', lambda e: out.append(f'{where[0]}: error: {e}'))
            page.on('requestfailed', lambda r: out.append(f'{where[0]}: failed: {r.url}') if 'ERR_ABORTED' not in (r.failure or '') else None)
            page.on('response', lambda r: out.append(f'{where[0]}: {r.status}: {r.url}') if r.status >= 400 else None)
            page.on('request', lambda r: None if r.url.startswith((self.base, 'data:', 'blob:')) else out.append(f'{where[0]}: asks another host: {r.url}'))
            for name in names or self.names:
                where[0] = name
                page.set_viewport_size(dict(width=1300, height=900))
                page.goto(f'{self.base}/{name}', wait_until='load')
                for src, width, alt in page.evaluate("[...document.querySelectorAll('article img')].map(i => [i.src.slice(0, 60), i.complete ? i.naturalWidth : 0, i.alt])"):
                    if not width: out.append(f'{name}: a picture does not load: {src}')
                    if len(alt) < 20: out.append(f'{name}: a picture has no description: {src}')
                page.set_viewport_size(dict(width=390, height=800))
                wide = page.evaluate('document.documentElement.scrollWidth')
                if wide > 391: out.append(f'{name}: scrolls sideways on a phone: {wide} pixels')
        return out

    def accessible(self, names, schemes=('light', 'dark')):
        out, axe = [], Axe()
        for scheme in schemes:
            with self.page(scheme=scheme) as page:
                for name in names:
                    page.goto(f'{self.base}/{name}', wait_until='load')
                    for v in axe.run(page, options=WCAG).response['violations']:
                        n = v['nodes'][0]
                        out.append(f"{name} ({scheme}): {v['id']}: {v['help']}: {len(v['nodes'])} × {n['target'][0]}: {n['html'][:120]}: {(n.get('any') or [{}])[0].get('message', '')[:160]}")
        return out

    def front_is_small(self):
        sizes = []
        with self.page() as page:
            page.on('response', lambda r: sizes.append(len(r.body())) if r.ok and not r.url.startswith('data:') else None)
            page.goto(f'{self.base}/index.html', wait_until='networkidle')
        return [] if sum(sizes) < FRONT_MAX else [f'index.html: {sum(sizes):,} bytes with all it loads; {FRONT_MAX:,} are allowed']

    def search_finds(self, words, target):
        "The search for `words` lists the page `target`."
        with self.page() as page:
            page.goto(f'{self.base}/search.html?q={words}', wait_until='load')
            try: page.wait_for_selector(f'#search-results a[href*="{target}"]')
            except TimeoutError:
                links = page.evaluate("[...document.querySelectorAll('#search-results a')].map(a => a.href)")
                return [f'search.html: {words} does not find {target}: {links[:5] or "nothing"}']
        return []

    def runs_sort(self):
        "The table of all runs sorts by test accuracy both ways, and its field filters."
        def shown(page): return [(t[0], float(t[1])) for t in page.evaluate("[...document.querySelectorAll('table.sortable tbody tr')].filter(r => !r.hidden).map(r => [r.cells[0].textContent, r.cells[3].textContent])") if re.fullmatch(r'[\d.]+', t[1])]
        out = []
        with self.page() as page:
            page.goto(f'{self.base}/all_runs.html', wait_until='load')
            head, before = page.locator('th', has_text='test accuracy'), shown(page)
            for way, reverse in (('descending', True), ('ascending', False)):
                head.get_by_role('button').press('Enter')
                if head.get_attribute('aria-sort') != way: out.append(f'all_runs.html: aria-sort is not {way}')
                if [x for _, x in shown(page)] != sorted((x for _, x in before), reverse=reverse): out.append(f'all_runs.html: not sorted {way} by accuracy')
            if len(before) >= 9:
                page.get_by_label('Filter rows').fill(before[0][0])
                if {n for n, _ in shown(page)} != {before[0][0]}: out.append('all_runs.html: the filter shows other rows')
        return out

    def number_leads_to_its_record(self, name):
        "A number of the runs table of page `name`, followed to the executed notebook, is the number in the record there."
        with self.page() as page:
            page.goto(f'{self.base}/{name}', wait_until='load')
            links = page.locator('article table:has(caption:has-text("runs under the profile")) td a[title][href*="/s"]:not([href$="about.html"])').filter(has_text=re.compile(r'^\d+\.\d$'))
            if not links.count(): return [f'{name}: no number leads to a notebook']
            title, text = links.first.get_attribute('title'), links.first.inner_text()
            links.first.click()
            if not re.search(r'/s\d+\.html$', page.url): return [f'{name}: {text} leads to {page.url}']
            href = page.get_by_role('link', name='record', exact=True).get_attribute('href')
            record = json.loads((self.site/urlsplit(urljoin(page.url, href)).path.lstrip('/')).read_text(encoding='utf-8'))
            m = record['metrics']
            numbers = {f'{100*x:.1f}' for x in (m['test']['accuracy'], m['valid']['accuracy'], m.get('max_valid_accuracy') or 0, m['test']['macro_f1'])}
            body = page.inner_text('article')
        out = [] if text in numbers else [f'{name}: {text} leads to a record with {sorted(numbers)}']
        if f"{record['study']}/{record['run']}" not in title or f"{record['study']}/{record['run']}" not in body: out.append(f'{name}: {title} leads to another run: {page.url}')
        return out

def check(site:Path, browser, every:bool=True)->list[str]:
    "All problems of a built site; without `every`, one notebook of a run stands for all, and the dark theme is looked at on two pages."
    out = check_site(site)
    with served(site) as base:
        s = Site(site, base, browser)
        runs = [n for n in s.names if re.search(r'/s\d+\.html$', n)]
        some = [*runs[:1], *[n for n in s.names if n.endswith('about.html')][:1]]
        out += s.every_page(None if every else [*s.pages, 'search.html', *some]) + s.front_is_small()
        out += s.accessible([*s.pages, *some]) if every else s.accessible([*s.pages, *some], ['light']) + s.accessible(['index.html', *runs[:1]], ['dark'])
        if runs:
            _, study, run, _ = runs[0].split('/')
            out += s.search_finds(run, f'runs/{study}/{run}/') + s.runs_sort()
            for name in ('ladder.html', 'optimizers.html'):
                if name in s.pages and re.search(r'href="runs/[^"]*/s\d+\.html', (s.site/name).read_text(encoding='utf-8')): out += s.number_leads_to_its_record(name)
    return out

if __name__ == '__main__':
    from playwright.sync_api import sync_playwright
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.browser import find_browser
    site = Path(sys.argv[1])
    if not (site/'index.html').exists(): sys.exit(f'{site}: no book here; make report builds one')
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=find_browser(), args=['--no-sandbox', '--disable-gpu', '--disable-background-networking'])
        problems = check(site, b); b.close()
    print('\n'.join(problems) or f'{site}: no problems')
    sys.exit(bool(problems))
