"The networks: published parameter counts, shapes, sizes that are too small, multiplications, initialisation."
import pytest, torch
from torch import nn

from imgcls.models import (NETWORKS, build_model, check_size, count_macs, count_parameters, flat_features, init_whitening, meta_model, min_size,
                           model_layers, model_table, model_text, needs_whitening, trace_shapes)
from imgcls.params import ARCHS, BadInput, make_params

TEN = dict(blocks=[2]*5, filters=[64, 128, 256, 512, 512])
SIZES = dict(block_cnn=64, cnn4=96)  # the others take 32


@pytest.mark.parametrize('arch,classes,size,args,count', [
    ('convnet', 10, 32, {}, 2_169_770),
    ('block_cnn', 100, 64, {}, 1_867_428),
    ('block_cnn', 100, 64, dict(filters=[128, 256, 256, 256, 256, 256]), 8_035_940),
    ('group_resnet', 100, 64, {}, 2_800_804),
    ('vgg16', 104, 224, {}, 134_686_632),
    ('resnet50', 104, 224, {}, 23_721_128),
    ('basenet', 100, 32, {}, 103_172),
    ('vgg', 100, 32, {}, 7_200_164),
    ('vgg', 100, 32, TEN | dict(pools=[1, 2, 3, 4]), 11_921_828),
])
def test_published_parameter_counts(arch, classes, size, args, count):
    model = meta_model(arch, classes, size, **args)
    assert count_parameters(model) == count
    assert model_table(model, size).parameters.sum() == count


def test_block_cnn_ends_in_3200_features():
    assert flat_features(meta_model('block_cnn', 100, 64)[:6], 64) == 128*5*5 == 3200


@pytest.mark.parametrize('arch', NETWORKS)
def test_every_network_learns_a_batch_and_is_seeded(arch):
    "Logits of the right shape, a gradient for every parameter, equal weights from equal seeds; the heavy ones on the meta device only."
    size = SIZES.get(arch, 32)
    model = meta_model(arch, 7, size)
    assert model(torch.empty(2, 3, size, size, device='meta')).shape == (2, 7)
    if count_parameters(model) > 3e7: return
    torch.manual_seed(3); a = build_model(arch, 7, size)
    torch.manual_seed(3); b = build_model(arch, 7, size)
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))
    assert not any(p.is_meta for p in a.state_dict().values())
    nn.functional.cross_entropy(a(torch.randn(4, 3, size, size)), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in a.parameters())


@pytest.mark.parametrize('arch', NETWORKS)
def test_smallest_size_works_and_the_next_smaller_names_its_layer(arch):
    least = min_size(arch)
    check_size(arch, {}, least)
    if least == 1: return
    with pytest.raises(BadInput, match=rf'size: {least-1} pixels .* {arch}: nothing is left at its layer [a-z0-9.]+; .* works is {least}$'):
        build_model(arch, 7, least-1)


@pytest.mark.parametrize('arch,size', [('cnn4', 76), ('vgg16', 32), ('convnet', 4)])
def test_smallest_sizes_by_hand(arch, size): assert min_size(arch) == size


def test_size_that_works_at_the_first_layers_only_is_found_without_training():
    with pytest.raises(BadInput, match='layer block4.conv2; the smallest size that works is 76'): check_size('cnn4', {}, 64)
    with pytest.raises(BadInput, match='layer block4.pool; the smallest size that works is 76'): check_size('cnn4', {}, 75)


def test_a_size_for_a_phase_that_the_network_was_not_built_for():
    check_size('resnet18', {}, 64, others=(32, 96))
    check_size('vgg', {}, 64, others=(32,))
    with pytest.raises(BadInput, match='phases: size 64: convnet flattens'): check_size('convnet', {}, 32, others=(64,))
    with pytest.raises(BadInput, match='size: 4 pixels are too few for vgg: .* block3.pool; the smallest size that works is 8'): check_size('vgg', {}, 64, others=(4,))


def test_other_torch_errors_are_not_taken_for_small_images():
    wrong = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(5, 2))
    with pytest.raises(RuntimeError): trace_shapes(wrong, 32)


def test_macs_by_hand():
    # basenet: 5x5x3 → 6 maps of 28, 5x5x6 → 16 maps of 10, two linear layers
    assert count_macs(build_model('basenet', 100, 32), 32) == 28*28*6*75 + 10*10*16*150 + 400*200 + 200*100
    t = model_table(meta_model('resnet50', 1000, 224, stem='imagenet'), 224)
    assert round(t.macs.sum()/1e9, 2) == 4.09  # torchvision publishes 4.09 giga-multiply-adds
    grouped = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, stride=2))
    assert count_macs(grouped, 9) == 4*4*6*9


def test_table_leaves_the_model_alone_and_counts_shared_layers_once():
    model = build_model('group_resnet', 10, 32).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    t = model_table(model, 32)
    assert t.layer.duplicated().any() and t.parameters.sum() == count_parameters(model)  # its blocks use one ReLU twice
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_vgg_he_initialisation():
    torch.manual_seed(0)
    he, plain = build_model('vgg', 10, 32, init='he'), build_model('vgg', 10, 32)
    w = he.block3.conv2.weight
    assert abs(w.std().item()/(2/(256*9))**.5 - 1) < .02 and he.block3.conv2.bias.eq(0).all()
    assert plain.block3.conv2.weight.std() < .6*w.std()  # torch's default has a sixth of the variance
    assert model_layers(he) == model_layers(plain)


def test_vgg_head_options_add_only_their_layers():
    names = lambda **kw: [l.split(': ')[0] for l in model_layers(meta_model('vgg', 10, 32, **kw))]
    assert set(names(head_norm=True)) - set(names()) == {'headnorm1'}
    assert set(names(head_dropout=.5)) - set(names()) == {'headdrop1'}
    assert set(names()) - set(names(batch_norm=False)) == {f'block{i}.norm{j}' for i in (1, 2, 3, 4) for j in (1, 2)}


@pytest.mark.parametrize('arch,args,text', [
    ('convnett', {}, "did you mean 'convnet'"),
    ('vgg', dict(pools=[5]), 'pools .5.: each is the number of one of the 4 blocks'),
    ('group_resnet', dict(blocks=[2, 2]), 'lists of one length are needed: blocks has 2, filters has 3, strides has 3'),
    ('cnn4', dict(dropout=1.), 'dropout'),
    ('resnet18', dict(stem='tiny'), 'small'),
])
def test_wrong_arguments_are_one_line(arch, args, text):
    with pytest.raises(BadInput, match=text) as e: build_model(arch, 10, 96, **args)
    assert '\n' not in str(e.value)


def test_small_stem_keeps_the_pixels():
    shapes = lambda **kw: dict((n, s) for n, _, s in trace_shapes(meta_model('resnet18', 10, 32, **kw), 32))
    assert shapes()['layer1.1.conv2'] == (64, 8, 8) and shapes(stem='small')['layer1.1.conv2'] == (64, 32, 32)


def test_whitening_is_frozen_and_survives_loading():
    model, images = build_model('fast_resnet', 10, 32), torch.rand(32, 3, 32, 32)
    assert needs_whitening(model) and not needs_whitening(build_model('fast_resnet', 10, 32, whiten=False))
    assert not needs_whitening(build_model('convnet', 10, 32))
    init_whitening(model, images)
    before = model.stem.conv.weight.clone()
    for p in model.parameters(): p.requires_grad_(True)  # what a call of unfreeze does
    opt = torch.optim.SGD(model.parameters(), .1)
    model(images).square().sum().backward(); opt.step()
    assert torch.equal(model.stem.conv.weight, before)
    again = build_model('fast_resnet', 10, 32)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.stem.conv.weight, before)
    with pytest.raises(BadInput, match='no whitening stem'): init_whitening(build_model('convnet', 10, 32), images)


def test_fast_resnet_groups_start_as_the_identity():
    model = build_model('fast_resnet', 10, 32)
    x = torch.randn(2, 256, 5, 5)
    assert torch.equal(model.group2.conv2(x), x)


def test_text_is_complete():
    text = model_text('convnet', 32, 10)
    assert 'block1.conv1' in text and '32 x 32 x 32' in text and '2,169,770 parameters' in text
    with pytest.raises(BadInput, match='76'): model_text('cnn4', 32, 10)


def test_every_network_has_typed_arguments_that_a_run_file_may_give():
    assert set(NETWORKS) <= set(ARCHS)
    for arch in NETWORKS: assert make_params(dict(arch=arch)).resolve().arch_args == ARCHS[arch]().model_dump()


def test_no_profile_scales_a_network_below_what_it_takes():
    "The sizes that `Params.resolve` stops at are the networks' own: those of cnn4 and block_cnn are worked out in params, the others take the default `size_min`."
    default = make_params({}).size_min
    for arch in NETWORKS: assert min_size(arch) <= max(default, getattr(ARCHS[arch](), 'least', 1))
    assert ARCHS['block_cnn']().least == min_size('block_cnn') == 45
    for filters in ([8], [8]*3, [8]*5): assert ARCHS['cnn4'](filters=filters).least == min_size('cnn4', filters=filters)
