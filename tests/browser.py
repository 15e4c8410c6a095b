"""Find a browser for the tests: a system Chromium, else Debian's package (as root), else Playwright's own download.
Run by `make test`; prints what it found. With IMGCLS_REQUIRE_BROWSER=1 none is a failure."""
import os, platform, shutil, subprocess, sys

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome', 'msedge')

def system_browser():
    "Path of an installed browser, or None."
    mac = ['/Applications/Google Chrome.app/Contents/MacOS/Google Chrome', '/Applications/Chromium.app/Contents/MacOS/Chromium']
    return next((b for n in NAMES if (b := shutil.which(n))), None) or next((m for m in mac if os.path.exists(m)), None)

def playwright_browser():
    "Path of Playwright's own Chromium, or None."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p: path = p.chromium.executable_path
    return path if os.path.exists(path) else None

def find_browser(): return system_browser() or playwright_browser()

def _try(*cmd, seconds):
    try: return subprocess.run(cmd, timeout=seconds, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env={**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'}).returncode == 0
    except (OSError, subprocess.TimeoutExpired): return False

def install_browser():
    "Debian's package where we are root, else Playwright's download; whether one of them worked."
    if platform.system() == 'Linux' and shutil.which('apt-get') and os.geteuid() == 0:
        if _try('apt-get', 'update', '-qq', seconds=180) and _try('apt-get', 'install', '-y', '-qq', '--no-install-recommends', 'chromium', seconds=600): return True
    return _try(sys.executable, '-m', 'playwright', 'install', 'chromium', seconds=600)

if __name__ == '__main__':
    found = find_browser() or (install_browser() and find_browser())
    if found: print(f'browser tests use {found}')
    else:
        print('browser tests will not run: install Chromium (Debian: apt-get install chromium; elsewhere: playwright install chromium)')
        if os.environ.get('IMGCLS_REQUIRE_BROWSER'): sys.exit(1)
