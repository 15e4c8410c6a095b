"A small project with made-up records, for tests of the book: nothing is trained."
import json, os, shutil, zlib
from pathlib import Path

import nbformat, numpy as np, pandas as pd

from imgcls.evaluation import metrics, predictions
from imgcls.params import load_params, load_study
from imgcls.records import DataInfo, ModelInfo, Record, Timing, begin_record, commit_record, params_dir, write_record

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', "nine <b>'quoted'</b>"]

def make_project(tmp:Path)->Path:
    "A copy of what a book is built from: params, pages, settings; no results."
    for part in ('params', 'nbs/report', 'nbs/experiments'): shutil.copytree(ROOT/part, tmp/part)
    shutil.copy2(ROOT/'settings.ini', tmp/'settings.ini')
    return tmp

def fake_record(root:Path, study:str, run:str, seed:int=0, accuracy:float=.7, profile:str='quick', images:int=200, notebook:bool=True, notes:dict|None=None):
    "A whole record whose predictions have the given accuracy on valid and test."
    p = load_params(f'{study}/{run}', profile=profile, seed=seed).resolve()
    r, n = np.random.default_rng(zlib.crc32(f'{run} {seed}'.encode())), len(CLASSES)
    frames = []
    for split in ('valid', 'test'):
        t = np.arange(images) % n
        guess = np.where(np.arange(images) < round(accuracy*images), t, (t + 1 + r.integers(0, n - 1, images)) % n)
        P = np.full((images, n), .02); P[np.arange(images), guess] = 1 - .02*(n - 1)
        frames.append(predictions([f'{split}/{CLASSES[c]}/{i}.png' for i, c in enumerate(t)], t, P, split, p.keep_probabilities))
    frame = pd.concat(frames, ignore_index=True)
    epochs = 3
    hist = pd.DataFrame(dict(epoch=range(1, epochs + 1), phase=0, lr=1e-3, train_loss=[2., 1.5, 1.], train_accuracy=[.2, .4, accuracy], valid_loss=[2., 1.6, 1.2],
                             valid_accuracy=[accuracy/3, accuracy/2, accuracy], seconds=1.))
    folder = begin_record(p, root)
    hist.to_csv(folder/'history.csv', index=False); frame.to_parquet(folder/'predictions.parquet', index=False)
    counts = {s: [images//n]*n for s in ('train', 'valid', 'test')}
    scores = {s: metrics(frame, CLASSES, s) for s in ('valid', 'test')}
    write_record(folder, Record(study=study, run=run, seed=seed, profile=profile, status='done', key=p.key, params=p.as_dict(),
        data=DataInfo(name=p.dataset, fingerprint='0'*16, classes=CLASSES, images={s: images for s in counts}, class_counts=counts),
        model=ModelInfo(arch=p.arch, parameters=123456, macs=1000, trained=[123456]),
        metrics=scores | dict(best_epoch=3, max_valid_accuracy=accuracy, last_train_accuracy=accuracy), timing=Timing(train_seconds=3., total_seconds=4., images_per_second=100.),
        env=dict(python='3.11', torch='2.15', fastai='2.8', device='cpu', lock='x'), ended='2026-01-01T00:00:00+00:00', notes=notes or {}))
    if notebook:
        out = nbformat.v4.new_output('execute_result', data={'text/plain': [f"test accuracy {scores['test']['accuracy']:.4f}"]}, execution_count=1)
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# Train one run\n\nmade up'), nbformat.v4.new_code_cell('scores', outputs=[out], execution_count=1)])
        nbformat.write(nb, folder/'run.ipynb')
    return commit_record(folder, params_dir(p, root), notebook)

def edit_accuracy(folder:Path, accuracy:float):
    "Change a record's test accuracy by hand."
    f = folder/'record.json'; d = json.loads(f.read_text())
    d['metrics']['test']['accuracy'] = accuracy
    f.write_text(json.dumps(d))
