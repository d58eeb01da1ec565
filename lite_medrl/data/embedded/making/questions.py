"""All candidate questions that a picture can answer."""

from __future__ import annotations

from random import Random

from . import questions_ct as on_ct
from . import questions_other as on_other
from .pack import Ask, Picture

MAKERS = (
    on_other.modality,
    on_ct.plane,
    on_ct.window,
    on_ct.level,
    on_ct.organ_present,
    on_ct.which_organ,
    on_ct.largest,
    on_ct.marked_organ,
    on_ct.marked_side,
    on_ct.lobe,
    on_ct.quarter,
    on_ct.mass,
    on_ct.mass_quarter,
    on_other.view,
    on_other.opacity,
    on_other.opacity_zone,
    on_other.opacity_height,
    on_other.tissue,
    on_other.region,
    on_other.ventricles,
    on_other.stain,
    on_other.brown,
    on_other.nuclei,
    on_other.disc,
    on_other.disc_side,
    on_other.body_part,
)


def candidates(picture: Picture, random: Random) -> list[Ask]:
    """Every question that the picture can answer."""
    return [ask for maker in MAKERS for ask in maker(picture, picture.facts, random)]
