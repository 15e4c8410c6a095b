import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if (ROOT.parent/'shared'/'data').is_dir(): os.environ.setdefault('IMGCLS_DATA', str(ROOT.parent/'shared'/'data'))

LONG = ['test_tutorials', 'test_jupyterlab', 'test_faults', 'test_book', 'test_search', 'test_runner'] # begun first, so that two workers end together

def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))

@pytest.fixture(scope='session')
def browser():
    "A headless Chromium; skipped with the reason where there is none, a failure where one is required."
    from playwright.sync_api import sync_playwright
    from tests.browser import find_browser
    path = find_browser()
    if path is None:
        (pytest.fail if os.environ.get('IMGCLS_REQUIRE_BROWSER') else pytest.skip)('no browser: install Chromium (Debian: apt-get install chromium; elsewhere: playwright install chromium)')
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'], timeout=120_000)
        yield b
        b.close()

@pytest.fixture
def browser_page(browser):
    "A page, and the list of what went wrong on it: requests to hosts other than this machine, failed requests, console errors."
    context = browser.new_context(); context.set_default_timeout(120_000); page = context.new_page(); problems = []
    page.on('console', lambda m: problems.append(f'console {m.text}') if m.type == 'error' else None)
    page.on('pageerror', lambda e: problems.append(f'error {e}'))
    page.on('request', lambda r: None if r.url.startswith(('http://127.0.0.1:', 'data:', 'blob:', 'file:')) else problems.append(f'{r.url} external request'))
    page.on('requestfailed', lambda r: problems.append(f'failed {r.url}'))
    yield page, problems
    context.close()
