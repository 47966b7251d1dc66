"""Networks of other packages, built without weights: what `benchmarks/zoo.py` tries to cut."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn
from zoo_configs import MONAI, TRANSFORMERS


@dataclass(frozen=True)
class Network:
    """How to build one network, and inputs for a batch of any size."""

    package: str
    name: str
    build: Callable[[], nn.Module]
    example: Callable[[int], Any]


def images(side: int | tuple[int, ...], channels: int = 3) -> Callable[[int], Any]:
    """Images of one size, as the only argument."""
    sizes = (side, side) if isinstance(side, int) else side
    return lambda batch: torch.randn(batch, channels, *sizes)


# fmt: off
TIMM = {
    96: [
        "mobileone_s1", "convmixer_768_32", "cpubone_nano", "cs3darknet_focus_s", "cspnext_tiny",
        "densenet121", "dla46x_c", "dpn48b", "tinynet_e", "efficientnet_b0", "mixnet_s",
        "efficientvim_m1", "efficientvit_b0", "fasternet_t0", "ghostnet_050", "ghostnetv2_100",
        "hardcorenas_b", "hgnetv2_b0", "hrnet_w18_small", "iformer_t", "inception_next_atto",
        "lcnetv2_small", "lowformer_b0", "mobilenetv3_small_050", "mobilenetv4_conv_small",
        "mobilevit_xxs", "mobilevitv2_050", "nextvit_small", "regnetx_002", "regnety_002",
        "repghostnet_050", "repvgg_a0", "repvit_m1", "res2net50_26w_4s", "res2next50",
        "resnest14d", "resnet10t", "resnet18", "resnet26d", "resnetv2_18", "rexnet_100",
        "selecsls42", "legacy_seresnet18", "legacy_seresnext26_32x4d", "shvit_s1", "skresnet18",
        "starnet_s050", "tresnet_m", "ese_vovnet19b_slim_dw", "legacy_xception", "xception41p",
        "convnext_atto", "mambaout_femto", "poolformer_s12", "ecaresnet26t",
        "seresnet33ts", "gcresnext26ts", "resnetblur18", "resnetaa34d", "cspresnet50",
        "lambda_resnet26t",
        "resnetrs50", "hgnet_tiny", "vovnet39a", "fbnetc_100", "spnasnet_100",
        "mnasnet_small", "semnasnet_050", "tf_efficientnetv2_b0", "mobilenetv1_100",
        "mobilenet_edgetpu_v2_xs", "mobilenetv5_base", "test_resnet", "test_byobnet",
        "test_efficientnet", "test_vit",
    ],
    128: ["vgg11_bn", "hgnet_small", "gernet_s", "fastvit_t8", "fastvit_mci0", "mobileone_s0"],
    224: [
        "efficientformer_l1", "efficientformerv2_s0", "efficientvit_m0", "levit_128s",
        "levit_conv_128s", "swiftformer_xs", "tiny_vit_5m_224", "visformer_tiny", "volo_d1_224",
        "xcit_nano_12_p16_224", "coatnet_pico_rw_224", "maxvit_tiny_rw_224", "coatnet_nano_rw_224",
        "coatnext_nano_rw_224",
    ],
    256: [
        "halonet_h1", "halonet26t", "sehalonet33ts", "botnet26t_256", "eca_botnext26ts_256",
        "bat_resnext26ts", "maxvit_pico_rw_256", "mobilevitv2_075",
    ],
    299: ["inception_v3", "inception_v4", "inception_resnet_v2"],
    331: ["nasnetalarge", "pnasnet5large"],
}
TORCHVISION = {
    64: ["vgg11_bn"],
    96: [
        "resnet18", "shufflenet_v2_x0_5", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5",
        "regnet_y_400mf", "regnet_x_400mf", "efficientnet_b0", "efficientnet_v2_s", "densenet121",
        "resnext50_32x4d", "wide_resnet50_2", "fcn_resnet50", "deeplabv3_mobilenet_v3_large",
        "lraspp_mobilenet_v3_large", "convnext_tiny",
    ],
    128: ["googlenet"],
    224: ["maxvit_t"],
    299: ["inception_v3"],
}
VIDEO = ["r3d_18", "mc3_18", "r2plus1d_18"]
DETECTORS = [
    "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn",
    "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn",
]
ULTRALYTICS = {
    "DetectionModel": [
        "yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov8n-ghost", "yolov8n-p2", "yolov9t",
        "yolov10n", "yolo11n", "yolo12n", "yolo26n",
    ],
    "SegmentationModel": ["yolov8n-seg", "yolo11n-seg", "yolo26n-seg"],
    "PoseModel": ["yolov8n-pose", "yolo11n-pose"],
    "OBBModel": ["yolov8n-obb", "yolo11n-obb"],
    "ClassificationModel": ["yolov8n-cls", "yolo11n-cls"],
    "RTDETRDetectionModel": ["yolov8n-rtdetr", "rtdetr-resnet50"],
}
SMP = [
    ("Unet", "resnet18"), ("UnetPlusPlus", "resnet18"), ("FPN", "resnet18"), ("PAN", "resnet18"),
    ("DeepLabV3", "resnet18"), ("DeepLabV3Plus", "resnet18"), ("Linknet", "resnet18"),
    ("MAnet", "resnet18"), ("PSPNet", "resnet18"), ("UPerNet", "resnet18"), ("Segformer", "mit_b0"),
    ("Unet", "efficientnet-b0"), ("Unet", "mobilenet_v2"), ("Unet", "timm-efficientnet-b0"),
    ("Unet", "densenet121"), ("Unet", "dpn68"), ("Unet", "se_resnet50"), ("Unet", "vgg11_bn"),
    ("Unet", "timm-skresnet18"), ("Unet", "mobileone_s0"), ("Unet", "xception"),
    ("FPN", "mit_b0"), ("DeepLabV3Plus", "mobilenet_v2"), ("Unet", "inceptionv4"),
    ("Unet", "tu-regnety_002"), ("FPN", "tu-mobilenetv3_small_050"),
]
PYTORCHCV = {
    32: [
        "resnet20_cifar10", "preresnet20_cifar10", "densenet40_k12_cifar10", "nin_cifar10",
        "xdensenet40_2_k24_bc_cifar10", "wrn20_10_1bit_cifar10", "rir_cifar10", "ror3_56_cifar10",
        "diaresnet20_cifar10", "shakeshakeresnet20_2x16d_cifar10", "resdropresnet20_cifar10",
        "msdnet22_cifar10", "fractalnet_cifar10",
    ],
    224: [
        "airnet50_1x64d_r2", "bagnet9", "bam_resnet18", "bn_vgg11b", "bninception", "cbam_resnet18",
        "channelnet", "darknet_tiny", "darts", "dicenet_wd5", "dla46c",
        "dpn68", "drnc26", "efficientnet_b0", "espnetv2_wd2", "fdmobilenet_wd4", "fishnet99",
        "ghostnet", "hardnet39ds", "hrnet_w18_small_v1", "ibn_resnet50", "igcv3_wd4",
        "irevnet301", "isqrtcovresnet18", "menet108_8x1_g3", "mixnet_s", "mobilenet_wd4",
        "mobilenetv3_small_w7d20", "nasnet_4a1056", "octresnet10_ad2", "peleenet", "polynet",
        "preresnet10", "proxylessnas_cpu", "regnety002", "resattnet56", "resnesta18", "revnet38",
        "scnet50", "selecsls42", "senet16", "sepreresnet10", "seresnet10", "sharesnet18",
        "shufflenet_g2_w1", "shufflenet_g1_wd4", "shufflenetv2_wd2", "shufflenetv2b_wd2",
        "sknet50", "sparsenet121", "spnasnet", "sqnxt23_w1", "squeezeresnet_v1_1", "vovnet27s",
        "xdensenet121_2", "inceptionresnetv1",
    ],
}
PYTORCHCV_DENSE = [
    "bisenet_resnet18_celebamaskhq", "cgnet_cityscapes", "ctxnet_cityscapes", "dabnet_cityscapes",
    "edanet_cityscapes", "enet_cityscapes", "erfnet_cityscapes", "esnet_cityscapes",
    "espcnet_cityscapes", "fastscnn_cityscapes", "fpenet_cityscapes", "lednet_cityscapes",
    "linknet_cityscapes", "segnet_cityscapes", "sinet_cityscapes", "sqnet_cityscapes",
    "unet_cityscapes", "centernet_resnet18_coco", "simplepose_resnet18_coco",
    "lwopenpose2d_mobilenet_cmupan_coco",
]
# fmt: on


def _torchvision() -> Iterator[Network]:
    from torchvision.models import get_model

    def make(name: str, **options: Any) -> nn.Module:  # noqa: ANN401
        if name in (
            *DETECTORS,
            "fcn_resnet50",
            "deeplabv3_mobilenet_v3_large",
            "lraspp_mobilenet_v3_large",
        ):
            options["weights_backbone"] = None
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False
        return get_model(name, weights=None, **options)

    for side, names in TORCHVISION.items():
        for name in names:
            yield Network("torchvision", name, partial(make, name), images(side))
    for name in VIDEO:
        yield Network("torchvision", name, partial(make, name), images((8, 48, 48)))
    for name in DETECTORS:
        size = {} if "320" in name else {"min_size": 128, "max_size": 192}
        draw = lambda batch: [torch.rand(3, 128, 160) for _ in range(batch)]  # noqa: E731
        yield Network("torchvision", name, partial(make, name, **size), draw)


def _timm() -> Iterator[Network]:
    from timm import create_model

    for side, names in TIMM.items():
        for name in names:
            make = partial(create_model, name, pretrained=False, num_classes=10)
            yield Network("timm", name, make, images(side))


def _ultralytics() -> Iterator[Network]:
    tasks = import_module("ultralytics.nn.tasks")
    for kind, names in ULTRALYTICS.items():
        for name in names:
            make = partial(getattr(tasks, kind), f"{name}.yaml", verbose=False)
            yield Network("ultralytics", name, make, images(128 if "cls" not in name else 96))


def _smp() -> Iterator[Network]:
    import segmentation_models_pytorch as smp

    for kind, encoder in SMP:
        make = partial(getattr(smp, kind), encoder, encoder_weights=None, classes=2)
        yield Network("segmentation_models_pytorch", f"{kind}/{encoder}", make, images(128))


def _pytorchcv() -> Iterator[Network]:
    from pytorchcv.model_provider import get_model

    for side, names in PYTORCHCV.items():
        for name in names:
            make = partial(get_model, name, pretrained=False)
            side_of = {"nasnet_4a1056": 224, "inceptionresnetv1": 299, "polynet": 331}
            yield Network("pytorchcv", name, make, images(side_of.get(name, side)))
    for name in PYTORCHCV_DENSE:
        size = (128, 256) if "cityscapes" in name else (256, 192) if "pose" in name else (256, 256)
        make = partial(get_model, name, pretrained=False, in_size=size)
        yield Network("pytorchcv", name, make, images(size))


def _monai() -> Iterator[Network]:
    nets = import_module("monai.networks.nets")
    for name, kind, options, sizes in MONAI:
        channels = options.get("in_channels", options.get("n_input_channels", 1))
        make = partial(getattr(nets, kind), **options)
        yield Network("monai", name, make, images(sizes, channels))


def _transformers() -> Iterator[Network]:
    package = import_module("transformers")

    def make(model: str, config: str, options: dict[str, Any]) -> nn.Module:
        network: nn.Module = getattr(package, model)(getattr(package, config)(**options))
        return network

    for model, config, options, side in TRANSFORMERS:
        build = partial(make, model, config, options)
        yield Network("transformers", model, build, images(side))


def _diffusers() -> Iterator[Network]:
    diffusers = import_module("diffusers")
    blocks = {"block_out_channels": (32,), "sample_size": 32}
    yield Network(
        "diffusers", "AutoencoderKL", partial(diffusers.AutoencoderKL, **blocks), images(32)
    )
    yield Network("diffusers", "VQModel", partial(diffusers.VQModel, **blocks), images(32))
    make = partial(diffusers.AutoencoderTiny)
    yield Network("diffusers", "AutoencoderTiny", make, images(32))


PACKAGES: dict[str, Callable[[], Iterator[Network]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "ultralytics": _ultralytics,
    "segmentation_models_pytorch": _smp,
    "monai": _monai,
    "transformers": _transformers,
    "pytorchcv": _pytorchcv,
    "diffusers": _diffusers,
}
