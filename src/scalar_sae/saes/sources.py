"""How users name SAEs, `[NAME=][SITE=]PATH`, and which SAEs are used together.

SAEs of one group can stand at the two ends of a block. A group's name is NAME if given. Otherwise it is the SAEs' own:
their method in a run, or the name that the format or folder gives in other people's files. Several paths may belong to
one group. If no group has an SAE at every end, SAEs of several groups are combined, provided that there is only one way
to do so.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from scalar_sae.errors import UserError
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site


class Group(dict[Site, SAE]):
    """SAEs by the site that they read. String keys such as `group["resid_mid.0"]` work too, with any name of the
    place.
    """

    def __missing__(self, key: Site | str) -> SAE:
        """The SAE at a place that is stored under another of the place's names.

        Raises:
            UserError: the key is not the name of a site, or there is no SAE there.
        """
        site = Site.of(key)
        stored = site_in(self, site)
        if stored is None:
            raise UserError(f"no SAE at {site}; there are SAEs at {', '.join(map(str, sorted(self))) or 'no site'}")
        return self[stored]

    def to(self, device: str | torch.device) -> "Group":
        """The same SAEs on a device."""
        return Group({site: sae.to(device) for site, sae in self.items()})


Find = Callable[[Group], Site | None]
"""Returns the key of a group's SAE at one end, or None if it has none there."""


class Source(NamedTuple):
    """A path of SAEs, with the name and site that the user gave for it."""

    path: str
    name: str | None = None
    """Name for the group of its SAEs."""
    site: Site | None = None
    """Site that its only SAE reads."""

    @classmethod
    def parse(cls, text: str | Path) -> "Source":
        """Parse `[NAME=][SITE=]PATH`. Text that exists as a path is taken as a path, whatever its name.

        Raises:
            UserError: NAME cannot be the name of a folder.
        """
        name, site, path = None, None, str(text)
        while not Path(path).exists() and (match := re.fullmatch(r"([^=/\\]+)=(.+)", path)):
            if re.fullmatch(r"[a-z_]+\.\d+", match[1]) and site is None:
                site = Site.parse(match[1])
            elif name is None and site is None:
                name = match[1]
            else:
                raise UserError(f"{text}: expected NAME=SITE=PATH, or less of it")
            path = match[2]
        if name is not None and not re.fullmatch(r"\w[\w.+ -]{0,99}", name):
            raise UserError(f"{text}: {name!r} cannot name SAEs; take up to 100 letters, digits, and . + - in between")
        return cls(path, name, site)


def site_in(group: Mapping[Site, SAE], site: Site) -> Site | None:
    """The key of the SAE at a place, under whichever of the place's names it is stored."""
    return next((other for other in group if other.same_place(site)), None)


def together(groups: Mapping[str, Group], ends: Mapping[str, Find]) -> dict[str, Group]:
    """The groups with an SAE at every end. If there is none, the one group that can be combined from several.

    Args:
        groups: SAEs by name and site.
        ends: functions that find the SAE at each end, by a name of the end for messages.

    Raises:
        UserError: several groups have an SAE at an end, and no group has all ends.
    """
    whole = {name: group for name, group in groups.items() if all(find(group) is not None for find in ends.values())}
    if whole:
        return whole
    chosen: dict[str, list[Site]] = {}
    for end, find in ends.items():
        there = [(name, site) for name, group in groups.items() if (site := find(group)) is not None]
        if len(there) > 1:
            names = ", ".join(name for name, _ in there)
            raise UserError(
                f"several SAEs at {end} ({names}) and none of these at every end; give those that belong together one "
                "name: --saes NAME=PATH --saes NAME=PATH"
            )
        if not there:  # include all SAEs, so that the message can list them
            return {"+".join(groups): Group({site: sae for group in groups.values() for site, sae in group.items()})}
        chosen.setdefault(there[0][0], []).append(there[0][1])
    parts = Group({site: groups[name][site] for name, sites in chosen.items() for site in sites})
    return {"+".join(chosen): parts}
