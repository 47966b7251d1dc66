"""Small configurations of the networks of MONAI and transformers, for `zoo_networks.py`."""

from typing import Any

Options = dict[str, Any]

PLANE: Options = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
LEVELS: Options = {"channels": (8, 16, 32), "strides": (2, 2)}
STEPS: Options = {"channels": (8, 16), "strides": (2, 2)}
GREY: Options = {"spatial_dims": 2, "in_channels": 1, "num_classes": 2}
BATCH: Options = {"norm": "batch"}
FEATURES: Options = {"features": (8, 8, 16, 16, 32, 8)}
FILTERS: Options = {"init_filters": 8}
DYNAMIC: Options = {
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "norm_name": "batch",
}
LATENT: Options = {"in_shape": (1, 64, 64), "spatial_dims": 2, "out_channels": 1, "latent_size": 8}
UNETR: Options = {
    "img_size": 64,
    "hidden_size": 48,
    "mlp_dim": 96,
    "num_heads": 4,
    "norm_name": "batch",
    "feature_size": 8,
}
SIDES = (64, 64)

# fmt: off
# Name, name of the class, options, sizes of an image.
MONAI: list[tuple[str, str, Options, tuple[int, ...]]] = [
    ("UNet", "UNet", PLANE | LEVELS | BATCH, SIDES),
    ("UNet-res", "UNet", PLANE | LEVELS | BATCH | {"num_res_units": 2}, SIDES),
    ("UNet-3d", "UNet", PLANE | LEVELS | BATCH | {"spatial_dims": 3}, (32, 32, 32)),
    ("AttentionUnet", "AttentionUnet", PLANE | LEVELS, SIDES),
    ("BasicUNet", "BasicUNet", PLANE | BATCH | FEATURES, SIDES),
    ("BasicUNetPlusPlus", "BasicUNetPlusPlus", PLANE | BATCH | FEATURES, SIDES),
    ("SegResNet", "SegResNet", PLANE | BATCH | FILTERS, SIDES),
    ("SegResNetDS", "SegResNetDS", PLANE | BATCH | FILTERS, SIDES),
    ("DynUNet", "DynUNet", PLANE | DYNAMIC, SIDES),
    ("DynUNet-res", "DynUNet", PLANE | DYNAMIC | {"res_block": True}, SIDES),
    ("HighResNet", "HighResNet", PLANE | {"norm_type": "batch"}, SIDES),
    ("VNet", "VNet", PLANE, SIDES),
    ("FlexibleUNet", "FlexibleUNet",
     {"in_channels": 1, "out_channels": 2, "backbone": "efficientnet-b0"}, SIDES),
    ("FlexibleUNet-resnet", "FlexibleUNet",
     {"in_channels": 1, "out_channels": 2, "backbone": "resnet18"}, SIDES),
    ("AutoEncoder", "AutoEncoder", PLANE | BATCH | STEPS, SIDES),
    ("VarAutoEncoder", "VarAutoEncoder", LATENT | BATCH | STEPS, SIDES),
    ("DenseNet121", "DenseNet121", PLANE, SIDES),
    ("SEResNet50", "SEResNet50", GREY, SIDES),
    ("SEResNext50", "SEResNext50", GREY, SIDES),
    ("EfficientNetBN", "EfficientNetBN",
     GREY | {"model_name": "efficientnet-b0", "pretrained": False}, SIDES),
    ("resnet18", "resnet18", {"spatial_dims": 2, "n_input_channels": 1, "num_classes": 2}, SIDES),
    ("Regressor", "Regressor",
     LEVELS | BATCH | {"in_shape": (1, 64, 64), "out_shape": (2,)}, SIDES),
    ("Classifier", "Classifier", LEVELS | BATCH | {"in_shape": (1, 64, 64), "classes": 2}, SIDES),
    ("AHNet", "AHNet", PLANE | {"psp_block_num": 2}, SIDES),
    ("Quicknat", "Quicknat", BATCH | {"num_classes": 2, "num_filters": 8}, SIDES),
    ("RegUNet", "RegUNet",
     {"spatial_dims": 2, "in_channels": 1, "num_channel_initial": 8, "depth": 2}, SIDES),
    ("MedNeXtS", "MedNeXtS", PLANE, SIDES),
    ("UNETR", "UNETR", PLANE | UNETR, SIDES),
    ("SwinUNETR", "SwinUNETR", PLANE | {"feature_size": 12, "norm_name": "batch"}, SIDES),
    ("DAF3D", "DAF3D",
     {"in_channels": 1, "out_channels": 2, "visual_output": False}, (16, 32, 32)),
]

STAGES: Options = {
    "embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1],
}
WIDTHS: Options = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}
MOBILE: Options = {
    "hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 32, 64, 96, 128, 160, 640],
}
QUERIES: Options = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 5,
}
DETR: Options = QUERIES | {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
}
HYBRID: Options = QUERIES | {
    "encoder_hidden_dim": 32, "decoder_in_channels": [32, 32, 32], "num_denoising": 0,
}
DPT: Options = {
    "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "image_size": 96,
    "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96,
    "neck_hidden_sizes": [8, 16, 24, 24], "fusion_hidden_size": 16,
    "use_batch_norm_in_fusion_residual": True,
}
HGNET: Options = {
    "stem_channels": [3, 8, 16], "embedding_size": 16, "stage_in_channels": [16, 32, 48, 64],
    "stage_mid_channels": [8, 16, 16, 24], "stage_out_channels": [32, 48, 64, 96],
    "stage_num_blocks": [1, 1, 1, 1], "hidden_sizes": [32, 48, 64, 96],
}
CLASSES = "ForImageClassification"
MASKS = "ForSemanticSegmentation"
BOXES = "ForObjectDetection"

# Names of the classes of the model and of its configuration, options, side of an image.
TRANSFORMERS: list[tuple[str, str, Options, int]] = [
    (f"ResNet{CLASSES}", "ResNetConfig", STAGES | {"layer_type": "basic"}, 96),
    ("ResNetModel", "ResNetConfig", STAGES, 96),
    (f"RegNet{CLASSES}", "RegNetConfig", STAGES | {"groups_width": 8}, 96),
    (f"MobileNetV1{CLASSES}", "MobileNetV1Config", {"depth_multiplier": 0.25}, 96),
    (f"MobileNetV2{CLASSES}", "MobileNetV2Config", {"depth_multiplier": 0.35}, 96),
    (f"MobileNetV2{MASKS}", "MobileNetV2Config", {"depth_multiplier": 0.35}, 96),
    (f"EfficientNet{CLASSES}", "EfficientNetConfig", {"image_size": 96}, 96),
    (f"Levit{CLASSES}", "LevitConfig", {}, 224),
    (f"Bit{CLASSES}", "BitConfig", STAGES | {"num_groups": 8}, 96),
    (f"ConvNext{CLASSES}", "ConvNextConfig", WIDTHS, 96),
    (f"Segformer{MASKS}", "SegformerConfig", {}, 96),
    (f"MobileViT{CLASSES}", "MobileViTConfig", MOBILE, 96),
    (f"MobileViT{MASKS}", "MobileViTConfig", MOBILE, 96),
    (f"MobileViTV2{CLASSES}", "MobileViTV2Config", {"width_multiplier": 0.5}, 96),
    (f"SwiftFormer{CLASSES}", "SwiftFormerConfig", {}, 96),
    (f"PoolFormer{CLASSES}", "PoolFormerConfig", {}, 96),
    (f"Cvt{CLASSES}", "CvtConfig", {}, 96),
    (f"DPT{MASKS}", "DPTConfig", DPT, 96),
    (f"UperNet{MASKS}", "UperNetConfig", {"hidden_size": 32}, 96),
    ("SuperPointForKeypointDetection", "SuperPointConfig", {}, 96),
    (f"HGNetV2{CLASSES}", "HGNetV2Config", HGNET, 96),
    (f"Detr{BOXES}", "DetrConfig", DETR, 96),
    (f"ConditionalDetr{BOXES}", "ConditionalDetrConfig", DETR, 96),
    (f"TableTransformer{BOXES}", "TableTransformerConfig", DETR, 96),
    (f"RTDetr{BOXES}", "RTDetrConfig", HYBRID, 128),
    (f"RTDetrV2{BOXES}", "RTDetrV2Config", HYBRID, 128),
    (f"DFine{BOXES}", "DFineConfig", HYBRID, 128),
    ("ZoeDepthForDepthEstimation", "ZoeDepthConfig", {}, 96),
]
# fmt: on
