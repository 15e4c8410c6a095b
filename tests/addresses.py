"""The repository's address stands in settings.ini. Here it is copied from there into Colab badges, install cells and clone commands: `make export` runs this file."""
import re
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = ('README.md', 'CONTRIBUTING.md', '_quarto.yml', 'nbs/tutorials/*.ipynb', 'nbs/experiments/*.ipynb')

def address(root:Path=ROOT)->dict:
    "user, repo and branch of settings.ini."
    c = ConfigParser(delimiters=['=']); c.read(root/'settings.ini', encoding='utf-8')
    return {k: c['DEFAULT'][k] for k in ('user', 'repo', 'branch')}

def rewritten(text:str, user:str, repo:str, branch:str)->str:
    "`text` with the address in every badge, clone command and `repo-url`."
    text = re.sub(r'(colab\.research\.google\.com/github)/[\w.-]+/[\w.-]+/blob/[\w.-]+/', rf'\1/{user}/{repo}/blob/{branch}/', text)
    return re.sub(r'(git clone (?:--?[a-z]+(?: \d+)? )*|repo-url: )https://github\.com/[\w.-]+/[\w-]+', rf'\1https://github.com/{user}/{repo}', text)

def update(root:Path=ROOT, write:bool=True)->list[str]:
    "Files whose address is not that of settings.ini; with `write`, they are set right."
    changed = []
    for f in sorted(f for p in PLACES for f in root.glob(p)):
        old = f.read_text(encoding='utf-8')
        new = rewritten(old, **address(root))
        if new != old:
            changed.append(str(f.relative_to(root)))
            if write: f.write_text(new, encoding='utf-8')
    return changed

if __name__ == '__main__': print('\n'.join(update()), end='')
