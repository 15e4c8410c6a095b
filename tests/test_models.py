"The networks: published parameter counts, shapes, sizes that are too small."
import pytest, torch
from imgcls.models import NETWORKS, build_model, count_macs, count_parameters, meta_model, min_size, model_table
from imgcls.params import ARCHS, BadInput


def parameters(arch, classes, size, **kw): return count_parameters(meta_model(arch, classes, size, **kw))


@pytest.mark.parametrize('arch,classes,size,args,count', [
    ('convnet', 10, 32, {}, 2_169_770),
])
def test_published_parameter_counts(arch, classes, size, args, count):
    assert parameters(arch, classes, size, **args) == count


def test_every_network_has_typed_arguments():
    assert set(NETWORKS) <= set(ARCHS)
