"Records of a second or two on the embedded digits, made in this process: what a run leaves, without its notebook."
from imgcls.experiment import evaluate, save_record
from imgcls.params import make_params
from imgcls.records import begin_record, params_dir
from imgcls.training import fit, learner

def small_params(run, study='demo', profile='quick', **kw):
    return make_params(dict(study=study, run=run, profile=profile, dataset='digits', size=16, epochs=2, train_limit=40, batch_size=32, threads=1, lr=3e-3, arch='simple',
                            arch_args=dict(filters=[16, 32])) | kw).resolve()

def small_run(p):
    "Train `p` and put its record in its place; its folder."
    folder = begin_record(p)
    learn = learner(p)
    save_record(folder, learn, p, fit(learn, p), evaluate(learn))
    return params_dir(p)
