"""MedMNIST v3 as its publishers describe it: names, classes, sizes of the splits, licences, MD5 sums.

Facts of record 10519652 at Zenodo and of the package medmnist 3.0.2; questions and spelled-out class names
are ours. RetinaMNIST's grades are the international scale's names for 0 to 4.
"""

from __future__ import annotations

from dataclasses import dataclass

SIZES = (28, 64, 128, 224)
RECORD = "https://zenodo.org/records/10519652/files"


@dataclass(frozen=True, slots=True)
class Subset:
    """One of the twelve 2-D sets."""

    name: str
    modality: str
    question: str
    classes: tuple[str, ...]
    rows: dict[str, int]
    md5: dict[int, str]
    licence: str = "CC-BY-4.0"

    @property
    def many(self) -> bool:
        """Whether an image has several labels at once: one yes/no question each."""
        return self.name == "chestmnist"

    def file(self, size: int) -> str:
        """The file's published name."""
        return f"{self.name}.npz" if size == 28 else f"{self.name}_{size}.npz"

    def url(self, size: int) -> str:
        """Where the file is published."""
        return f"{RECORD}/{self.file(size)}?download=1"


SUBSETS = {
    subset.name: subset
    for subset in (
        Subset(
            "pathmnist",
            "colon pathology",
            "Which tissue does this colon pathology image show?",
            (
                "adipose",
                "background",
                "debris",
                "lymphocytes",
                "mucus",
                "smooth muscle",
                "normal colon mucosa",
                "cancer-associated stroma",
                "colorectal adenocarcinoma epithelium",
            ),
            {"train": 89996, "validation": 10004, "test": 7180},
            {
                28: "a8b06965200029087d5bd730944a56c1",
                64: "55aa9c1e0525abe5a6b9d8343a507616",
                128: "ac42d08fb904d92c244187169d1fd1d9",
                224: "2c51a510bcdc9cf8ddb2af93af1eadec",
            },
        ),
        Subset(
            "chestmnist",
            "chest X-ray",
            "Does this chest X-ray show {finding}?",
            (
                "atelectasis",
                "cardiomegaly",
                "effusion",
                "infiltration",
                "mass",
                "nodule",
                "pneumonia",
                "pneumothorax",
                "consolidation",
                "edema",
                "emphysema",
                "fibrosis",
                "pleural thickening",
                "hernia",
            ),
            {"train": 78468, "validation": 11219, "test": 22433},
            {
                28: "02c8a6516a18b556561a56cbdd36c4a8",
                64: "9de6cd0b934ebb5b7426cfba5efbae16",
                128: "db107e5590b27930b62dbaf558aebee3",
                224: "45bd33e6f06c3e8cdb481c74a89152aa",
            },
        ),
        Subset(
            "dermamnist",
            "dermatoscopy",
            "Which skin lesion does this dermatoscopic image show?",
            (
                "actinic keratoses and intraepithelial carcinoma",
                "basal cell carcinoma",
                "benign keratosis-like lesions",
                "dermatofibroma",
                "melanoma",
                "melanocytic nevi",
                "vascular lesions",
            ),
            {"train": 7007, "validation": 1003, "test": 2005},
            {
                28: "0744692d530f8e62ec473284d019b0c7",
                64: "b70a2f5635c6199aeaa28c31d7202e1f",
                128: "2defd784463fa5243564e855ed717de1",
                224: "8974907d8e169bef5f5b96bc506ae45d",
            },
            "CC-BY-NC-4.0",
        ),
        Subset(
            "octmnist",
            "retinal OCT",
            "What does this retinal OCT image show?",
            (
                "choroidal neovascularization",
                "diabetic macular edema",
                "drusen",
                "a normal retina",
            ),
            {"train": 97477, "validation": 10832, "test": 1000},
            {
                28: "c68d92d5b585d8d81f7112f81e2d0842",
                64: "e229e9440236b774d9f0dfef9d07bdaf",
                128: "0a97e76651ace45c5d943ee3f65b63ae",
                224: "abc493b6d529d5de7569faaef2773ba3",
            },
        ),
        Subset(
            "pneumoniamnist",
            "chest X-ray",
            "What does this chest X-ray of a child show?",
            (
                "normal lungs",
                "pneumonia",
            ),
            {"train": 4708, "validation": 524, "test": 624},
            {
                28: "28209eda62fecd6e6a2d98b1501bb15f",
                64: "8f4eceb4ccffa70c672198ea285246c6",
                128: "05b46931834c231683c68f40c47b2971",
                224: "d6a3c71de1b945ea11211b03746c1fe1",
            },
        ),
        Subset(
            "retinamnist",
            "fundus photograph",
            "Which grade of diabetic retinopathy does this fundus photograph show?",
            (
                "no diabetic retinopathy",
                "mild non-proliferative diabetic retinopathy",
                "moderate non-proliferative diabetic retinopathy",
                "severe non-proliferative diabetic retinopathy",
                "proliferative diabetic retinopathy",
            ),
            {"train": 1080, "validation": 120, "test": 400},
            {
                28: "bd4c0672f1bba3e3a89f0e4e876791e4",
                64: "afda852cc34dcda56f86ad2b2457dbcc",
                128: "e48e916a24454daf90583d4e6efb1a18",
                224: "eae7e3b6f3fcbda4ae613ebdcbe35348",
            },
        ),
        Subset(
            "breastmnist",
            "breast ultrasound",
            "What does this breast ultrasound image show?",
            (
                "a malignant tumour",
                "normal tissue or a benign tumour",
            ),
            {"train": 546, "validation": 78, "test": 156},
            {
                28: "750601b1f35ba3300ea97c75c52ff8f6",
                64: "742edef2a1fd1524b2efff4bd7ba9364",
                128: "363e4b3f8d712e9b5de15470a2aaadf1",
                224: "b56378a6eefa9fed602bb16d192d4c8b",
            },
        ),
        Subset(
            "bloodmnist",
            "blood microscopy",
            "Which blood cell does this microscopy image show?",
            (
                "basophil",
                "eosinophil",
                "erythroblast",
                "immature granulocyte (myelocyte, metamyelocyte or promyelocyte)",
                "lymphocyte",
                "monocyte",
                "neutrophil",
                "platelet",
            ),
            {"train": 11959, "validation": 1712, "test": 3421},
            {
                28: "7053d0359d879ad8a5505303e11de1dc",
                64: "2b94928a2ae4916078ca51e05b6b800b",
                128: "adace1e0ed228fccda1f39692059dd4c",
                224: "b718ff6835fcbdb22ba9eacccd7b2601",
            },
        ),
        Subset(
            "tissuemnist",
            "kidney cortex microscopy",
            "Which part of the kidney cortex does this microscopy image show?",
            (
                "collecting duct or connecting tubule",
                "distal convoluted tubule",
                "glomerular endothelial cells",
                "interstitial endothelial cells",
                "leukocytes",
                "podocytes",
                "proximal tubule segments",
                "thick ascending limb",
            ),
            {"train": 165466, "validation": 23640, "test": 47280},
            {
                28: "ebe78ee8b05294063de985d821c1c34b",
                64: "123ece2eba09d0aa5d698fda57103344",
                128: "61b955355d7425a89687b06cca3ce0c2",
                224: "b077128c4a949f0a4eb01517f9037b9c",
            },
        ),
        Subset(
            "organamnist",
            "abdominal CT, axial",
            "Which organ does this axial CT image show?",
            (
                "bladder",
                "left femur",
                "right femur",
                "heart",
                "left kidney",
                "right kidney",
                "liver",
                "left lung",
                "right lung",
                "pancreas",
                "spleen",
            ),
            {"train": 34561, "validation": 6491, "test": 17778},
            {
                28: "68e3f8846a6bd62f0c9bf841c0d9eacc",
                64: "2dcccc29b88e6da5a01161ef20cda288",
                128: "eeae80d0a227a8d099027e1b3cfd3b60",
                224: "50747347e05c87dd3aaf92c49f9f3170",
            },
        ),
        Subset(
            "organcmnist",
            "abdominal CT, coronal",
            "Which organ does this coronal CT image show?",
            (
                "bladder",
                "left femur",
                "right femur",
                "heart",
                "left kidney",
                "right kidney",
                "liver",
                "left lung",
                "right lung",
                "pancreas",
                "spleen",
            ),
            {"train": 12975, "validation": 2392, "test": 8216},
            {
                28: "b9ceb9546e10131b32923c5bbeaea2b1",
                64: "3ce34a8724ea6f548e6db4744d03b6a9",
                128: "773c1f009daa3fe5d9a2a201b2a7ed94",
                224: "050f5e875dc056f6768abf94ec9995d1",
            },
        ),
        Subset(
            "organsmnist",
            "abdominal CT, sagittal",
            "Which organ does this sagittal CT image show?",
            (
                "bladder",
                "left femur",
                "right femur",
                "heart",
                "left kidney",
                "right kidney",
                "liver",
                "left lung",
                "right lung",
                "pancreas",
                "spleen",
            ),
            {"train": 13932, "validation": 2452, "test": 8827},
            {
                28: "9ab87b696fb54e2a387ebe992d6ed5f1",
                64: "53a6d115339d874c25e309a994ff46d3",
                128: "ded0c5fa01a95dc4978b956f613e9b8e",
                224: "b354719e553fbbb2513d5533f52a4cb1",
            },
        ),
    )
}
