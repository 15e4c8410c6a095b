"""Kills at random moments. `make fault` (`python tests/faults.py [kills] [seed]`) prints its figures; test_faults.py runs a short one.

SIGKILL ends the runner, a slot, a kernel or the warm parent of a 12-run study, again and again, and the study is started again until it is done. Then every
record must be whole, none that was whole may have been made again, every number must equal that of an undisturbed study, and no process may be left."""
import json, os, random, signal, socket, struct, sys, tempfile, time
from pathlib import Path

if __name__ == '__main__': sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from imgcls import records # noqa: E402

KINDS = ('runner', 'slot', 'kernel', 'parent')


def processes(mark)->dict:
    "pid → command line of the living processes started with IMGCLS_RUNTIME=`mark`, this one left out."
    out = {}
    for d in Path('/proc').iterdir():
        if not d.name.isdigit() or int(d.name) == os.getpid(): continue
        try:
            if f'IMGCLS_RUNTIME={mark}\0'.encode() not in (d/'environ').read_bytes() + b'\0': continue
            if (d/'stat').read_text().rpartition(')')[2].split()[0] != 'Z': out[int(d.name)] = (d/'cmdline').read_bytes().decode().replace('\0', ' ')
        except OSError: continue
    return out


def warm_parents(mark)->list:
    "The process behind each listening socket."
    out = []
    for f in Path(mark).glob('warm-*.sock'):
        with socket.socket(socket.AF_UNIX) as s:
            try: s.connect(str(f)); out.append(struct.unpack('3i', s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
            except OSError: continue
    return out


def targets(kind, runner, results, mark)->list:
    "Processes of a kind that could be killed now."
    if kind == 'runner': return [runner.pid]
    if kind == 'parent': return warm_parents(mark)
    if kind == 'slot': return [p for p, cmd in processes(mark).items() if 'multiprocessing.spawn' in cmd]
    found = []
    for f in results.glob('*/*/*/*.tmp/.kernel'):
        try: found.append(int(f.read_text()))
        except (OSError, ValueError): continue
    return [p for p in found if p in processes(mark)]


def whole(results)->dict:
    "id → record of each whole one, held against its checksums."
    return {'/'.join(f.parts[-3:]): records.verify_record(f) for f in results.glob('quick/storm/*/s*') if f.name[1:].isdigit()}


def storm(project, kills, seed=0, jobs=2, epoch=.15, names='abcdef', log=lambda *_: None)->dict:
    "Kill `kills` times, over as many studies as that takes; figures, with assertions on what must hold."
    draw, mark, t0 = random.Random(seed), os.environ['IMGCLS_RUNTIME'], time.monotonic()
    project.study('storm', more='seeds: {quick: 2}\n', **{r: f'lr: {i+1}e-3\n' for i, r in enumerate(names)})
    calm = project.root/'calm'
    done = project.imgcls('run', 'storm', '--jobs', jobs, IMGCLS_RESULTS=calm)
    assert done.returncode == 0, done.stderr
    expected = {k: (r.metrics, r.params) for k, r in whole(calm).items()}
    assert len(expected) == 2*len(names)
    count, starts, studies, resumed = dict.fromkeys(KINDS, 0), 0, 0, 0
    while sum(count.values()) < kills:
        studies += 1
        results, made, code = project.root/f'storm{studies}', {}, None
        while code != 0:
            runner = project.start('run', 'storm', '--jobs', jobs, IMGCLS_RESULTS=results, STANDIN_EPOCH=epoch)
            starts += 1
            assert starts < 20*kills, 'it does not end'
            while runner.poll() is None and sum(count.values()) < kills:
                time.sleep(draw.uniform(.2, 5))
                kind = draw.choice(KINDS)
                if not (pids := targets(kind, runner, results, mark)): continue
                try: os.kill(draw.choice(pids), signal.SIGKILL)
                except ProcessLookupError: continue
                count[kind] += 1
                log(f'{time.monotonic()-t0:6.1f} s  kill {sum(count.values())}: a {kind}')
            runner.communicate(timeout=300)
            code, now = runner.returncode, {k: r.started for k, r in whole(results).items()}
            assert {k: now[k] for k in made} == made, 'a finished run was run again'
            made = now
            log(f'{time.monotonic()-t0:6.1f} s  the runner ended ({code}); {len(made)}/{len(expected)} whole')
        got = whole(results)
        assert {k: (r.metrics, r.params) for k, r in got.items()} == expected, 'other numbers than undisturbed'
        resumed += sum(f'began at {n}' in (results/'quick'/k/'run.ipynb').read_text() for k in got for n in range(1, 6))
        assert not [*results.rglob('*.tmp'), *results.rglob('*.failed'), *results.rglob('*.old')]
    for _ in range(100):
        if not (left := processes(mark)): break
        time.sleep(.1)
    assert not left, f'processes left: {left}'
    return dict(kills=count, starts=starts, studies=studies, resumed=resumed, seconds=round(time.monotonic() - t0))


def main(kills=30, seed=0):
    from tests.standin import Project
    with tempfile.TemporaryDirectory(prefix='fault-') as d:
        project = Project(d)
        (project.root/'rt').mkdir()
        os.environ |= dict(IMGCLS_PROJECT=d, IMGCLS_RESULTS=f'{d}/results', IMGCLS_RUNTIME=f'{d}/rt', IMGCLS_PRELOAD='ipykernel.kernelapp,ipykernel.ipkernel,pydantic', OMP_NUM_THREADS='1')
        print(json.dumps(storm(project, kills, seed, log=print)))


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
