"""Apply another matcher to stored verdicts, without a model. Write the new D_PI and the changes of verdicts."""

from __future__ import annotations

from mpa_ray.config import RunConfig
from mpa_ray.errors import RunError
from mpa_ray.matching import matcher_label, matcher_of
from mpa_ray.observability.progress import say
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.level import students_ready
from mpa_ray.run.fingerprint import verdict_fingerprint
from mpa_ray.run.parity_export import export_parity
from mpa_ray.stages.judge import parity_samples
from mpa_ray.stages.rejudge import Changes


def rematch(context: RunContext[RunConfig]) -> None:
    """Export the D_PI of the configured matcher for every student. Training still uses the original D_PI.

    Raises:
        ConfigError: the verdicts were made with other settings, not only with another matcher.
        RunError: a student has shards without verdicts.
    """
    config, run, task = context.config, context.run, context.task
    matcher = config.identify.matcher or task.matcher
    label = matcher_label(matcher)
    shards = run.manifest().shards
    for student in students_ready(context, lambda name: not run.verdicts(name).missing(shards)):
        verdicts, fingerprint = run.verdicts(student.name), verdict_fingerprint(config, task, student)
        run.check_fingerprint(verdicts.folder, fingerprint, ignoring="identify.matcher")
        unjudged = verdicts.missing(shards)
        if unjudged:
            problem = f"{len(unjudged)} of {len(shards)} shards have no verdicts of {student.name}"
            raise RunError(f"{problem}: run mpa-ray identify.")
        changes, folder = Changes(), run.rematch_dir(student.name, label)
        rejudged = changes.counted(verdicts.rows(shards), matcher_of(matcher))
        # Folders cannot be listed, so a file records the name of this one.
        run.create_json(f"{folder}.json", {"matcher": label})
        export_parity(run, folder, task, parity_samples(rejudged), {"matcher": matcher.model_dump(mode="json")})
        run.write_json(f"{folder}/changes.json", changes.to_json())
        say(changes.table(f"{student.name} by {label}"))
        say(f"rematch {student.name}: {run.storage.root}/{folder}")
