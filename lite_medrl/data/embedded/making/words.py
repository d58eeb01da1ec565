"""The wordings: several questions a kind, and the sentence of reasoning that names the fact asked for."""

from __future__ import annotations

QUESTIONS: dict[str, list[str]] = {
    "modality": [
        "which modality is this ?",
        "how was this image made ?",
        "what kind of image is this ?",
        "name the modality .",
    ],
    "plane": ["which plane is shown ?", "in which plane is this slice ?", "what is the plane of the image ?"],
    "window": ["which ct window is used ?", "in which window is the ct shown ?", "name the ct window ."],
    "body_level": [
        "at which level is this axial slice ?",
        "which level of the body is shown ?",
        "where in the body is this slice ?",
    ],
    "body_depth": [
        "which part of the body does this coronal slice cut ?",
        "how deep is this coronal slice ?",
        "where does this coronal slice lie ?",
    ],
    "body_side": [
        "on which side of the body is this sagittal slice ?",
        "where does this sagittal slice lie ?",
        "which side does this sagittal slice cut ?",
    ],
    "brain_level": [
        "at which level is this brain slice ?",
        "which level of the brain is shown ?",
        "where in the brain is this slice ?",
    ],
    "brain_depth": [
        "which part of the brain does this coronal slice cut ?",
        "where does this coronal brain slice lie ?",
        "how deep is this coronal brain slice ?",
    ],
    "organ_present": [
        "is the {name} visible ?",
        "does this slice show the {name} ?",
        "can you see the {name} ?",
        "is the {name} in this image ?",
    ],
    "which_organ": [
        "which of these is visible ?",
        "which organ can be seen ?",
        "which structure is in this slice ?",
        "which of these does the image show ?",
    ],
    "largest_organ": [
        "which organ covers the largest area ?",
        "which of these looks largest ?",
        "which organ is largest in this slice ?",
    ],
    "marked_organ": [
        "which organ is marked by the yellow {shape} ?",
        "what is inside the yellow {shape} ?",
        "name the structure in the yellow {shape} .",
        "which structure does the yellow {shape} mark ?",
    ],
    "marked_side": [
        "which side of the patient is the yellow {shape} on ?",
        "on which side of the patient is the yellow {shape} ?",
        "the yellow {shape} is on which side of the patient ?",
    ],
    "lung_lobe": [
        "which lobe of the lung is in the yellow {shape} ?",
        "which lung lobe does the yellow {shape} mark ?",
        "name the lung lobe in the yellow {shape} .",
    ],
    "organ_position": [
        "where in the image is the {name} ?",
        "in which part of the image is the {name} ?",
        "which quarter of the image shows the {name} ?",
    ],
    "mass_present": [
        "is there a lung mass ?",
        "does this crop show a lung mass ?",
        "can you see a mass in the lung ?",
    ],
    "mass_position": [
        "where in the image is the lung mass ?",
        "in which part of the image is the mass ?",
        "which quarter of the image shows the mass ?",
    ],
    "view": [
        "which view is this chest radiograph ?",
        "what is the view ?",
        "from where was this radiograph taken ?",
    ],
    "opacity_present": [
        "is there an opacity in the lungs ?",
        "does the radiograph show an opacity ?",
        "can you see a lung opacity ?",
    ],
    "opacity_side": [
        "on which side of the patient is the opacity ?",
        "which side of the patient has the opacity ?",
        "the opacity is on which side of the patient ?",
    ],
    "opacity_zone": [
        "which lung zone has an opacity ?",
        "where is the opacity , if any ?",
        "is there an opacity , and in which zone ?",
    ],
    "opacity_height": [
        "is the opacity in the upper or lower lungs ?",
        "how high is the opacity , if any ?",
        "which part of the lungs has an opacity ?",
    ],
    "tissue": [
        "which tissue is in the yellow {shape} ?",
        "what tissue does the yellow {shape} mark ?",
        "name the brain tissue in the yellow {shape} .",
    ],
    "brain_region": [
        "which part of the brain is in the yellow {shape} ?",
        "what does the yellow {shape} mark in the brain ?",
        "name the brain region in the yellow {shape} .",
    ],
    "ventricles": [
        "are the lateral ventricles visible ?",
        "does this slice show the lateral ventricles ?",
        "can you see the lateral ventricles ?",
    ],
    "stain": ["which stain is this ?", "how was the tissue stained ?", "name the stain ."],
    "brown_area": [
        "how much of the tile is brown ?",
        "how large is the brown area ?",
        "how much brown stain is there ?",
    ],
    "nuclei_count": [
        "how many nuclei are there ?",
        "how many nuclei does the image show ?",
        "count the nuclei .",
    ],
    "optic_disc": [
        "is part of the optic disc visible ?",
        "does this crop show the optic disc ?",
        "can you see the optic disc ?",
    ],
    "disc_position": [
        "where is the optic disc ?",
        "on which side is the optic disc , if visible ?",
        "which side of the image shows the optic disc ?",
    ],
    "body_part": [
        "which part of the body is shown ?",
        "what part of the body is this ?",
        "name the part of the body .",
    ],
}
REASONS: dict[str, str | dict[str, str]] = {
    "modality": "the modality is {answer} .",
    "plane": "the slice is {answer} .",
    "window": "the ct is in the {answer} .",
    "body_level": "the slice is at the {answer} .",
    "body_depth": "the slice cuts the {answer} of the body .",
    "body_side": {
        "left side": "the slice is on the left side .",
        "right side": "the slice is on the right side .",
        "near the midline": "the slice is near the midline .",
    },
    "brain_level": {
        "cerebellum level": "the slice is at the cerebellum level .",
        "ventricle level": "the slice is at the ventricle level .",
        "above the ventricles": "the slice is above the ventricles .",
    },
    "brain_depth": "the slice cuts the {answer} of the brain .",
    "organ_present": {"yes": "the {name} is visible .", "no": "the {name} is not visible ."},
    "which_organ": "the {answer} is visible .",
    "largest_organ": "the {answer} covers the largest area .",
    "marked_organ": "the marked structure is the {answer} .",
    "marked_side": "the {shape} is on the {answer} .",
    "lung_lobe": "the marked lobe is the {answer} .",
    "organ_position": "the {name} is in the {answer} .",
    "mass_present": {"yes": "there is a lung mass .", "no": "there is no lung mass ."},
    "mass_position": "the mass is in the {answer} .",
    "view": "the radiograph is {answer} .",
    "opacity_present": {"yes": "there is an opacity .", "no": "there is no opacity ."},
    "opacity_side": "the opacity is on the {answer} .",
    "opacity_zone": {
        "no opacity": "there is no opacity .",
        **{
            z: f"the opacity is in the {z} ."
            for z in ("right upper zone", "right lower zone", "left upper zone", "left lower zone")
        },
    },
    "opacity_height": {
        "no opacity": "there is no opacity .",
        "upper lungs": "the opacity is in the upper lungs .",
        "lower lungs": "the opacity is in the lower lungs .",
    },
    "tissue": "the marked tissue is {answer} .",
    "brain_region": "the marked region is the {answer} .",
    "ventricles": {
        "yes": "the lateral ventricles are visible .",
        "no": "the lateral ventricles are not visible .",
    },
    "stain": "the stain is {answer} .",
    "brown_area": "{answer} of the tile is brown .",
    "nuclei_count": "there are {answer} nuclei .",
    "optic_disc": {"yes": "part of the optic disc is visible .", "no": "the optic disc is not visible ."},
    "disc_position": {
        "image left": "the optic disc is on the image left .",
        "image right": "the optic disc is on the image right .",
        "not visible": "the optic disc is not visible .",
    },
    "body_part": "the image shows the {answer} .",
}
