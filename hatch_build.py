"""Puts the workflow into the wheel (`base/project.py`); an editable install runs the checkout's."""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WORKFLOW = ["Snakefile", "config.yaml", "profiles", "resources", "rules", "studies", "workflow"]


class Pipeline(BuildHookInterface):
    def initialize(self, version, build_data):
        if version == "standard":
            inside = {name: f"streamgauge/pipeline/{name}" for name in WORKFLOW}
            build_data["force_include"].update(inside)
