"""From *verified* through the trial boot to *confirmed* or *reverted*.

The order of act and record at each step (house rule 3, "choose the harmless lie"):

=====================  =================  ===================================================
step                   first              the lie a power cut in between leaves
=====================  =================  ===================================================
arm, staged            act                "verified" while armed: arming twice is arming once,
                                          and if the new slot boots meanwhile, that is seen.
                                          The other way round, "staged" while not armed looks
                                          like a try that was spent: a good image is given up.
restart                record the count   "restarted once more" than really: one try fewer
trial boot, trial      act (boot loader)  "staged" while the new slot runs: seen by asking
confirm, confirmed     act                "trial" while kept: `primary` says so, and only a
                                          passed trial can have made it so
raise the floors       after confirmed    "confirmed" with low floors: raised at the next start;
                                          the other way round, a floor above what runs would
                                          shut out the image the boot loader falls back to
decide to go back      record             "going back" while not yet: revert again. The other
                                          way round the reason would be lost in the restart
go back, reverted      act (boot loader)  "trial" while the previous image runs: seen by asking
=====================  =================  ===================================================

What runs is asked of the boot control, and whether a restart happened of the boot id; that
something answers on the network proves neither.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from firmament.agent.bootctl.port import Restart
from firmament.agent.events import HealthChecked
from firmament.agent.fetching import reason_for
from firmament.agent.ledger import MAX_RESTARTS, MAX_STARTS_OVER
from firmament.agent.machine import Event, State
from firmament.agent.record import Reason
from firmament.errors import (
    BootControlError,
    FirmamentError,
    HealthError,
    LoopError,
    ReadBackError,
    Retry,
    RevertedError,
)
from firmament.log import logger
from firmament.protocol.status import Outcome

if TYPE_CHECKING:
    from firmament.agent.health.port import Finding
    from firmament.agent.ledger import Ledger
    from firmament.agent.parts import Parts
    from firmament.agent.slots.port import Label

log = logger("agent.trial")


class Trial:
    """Drives the boot control; every method may be called again after a restart."""

    def __init__(self, parts: Parts, ledger: Ledger) -> None:
        self._parts = parts
        self._ledger = ledger
        self._passes = 0
        self._last: tuple[Finding, ...] = ()
        self.is_restarting = False
        """The machine was asked to go down; until it does, nothing more is done."""

    @property
    def _slot(self) -> Label:
        slot = self._ledger.attempt.slot
        assert slot is not None
        return slot

    def is_booted(self) -> bool:
        """Whether the slot of the attempt in hand runs now."""
        return self._parts.boot.booted() is self._slot

    # --- verified -> staged ----------------------------------------------------------------

    def verify(self) -> bool:
        """Read the slot back; if it no longer holds the image, go back to fetching and return False."""
        manifest = self._ledger.attempt.manifest
        assert manifest is not None
        try:
            self._parts.slots[self._slot].verify(manifest.image)
        except ReadBackError as error:
            log.warning("slot.image-lost", slot=self._slot, problem=error.problem)
            starts_over = self._ledger.attempt.starts_over + 1
            self.disarm()
            if starts_over > MAX_STARTS_OVER:
                self._ledger.go(Event.STORAGE_GAVE_UP, reason=reason_for(error))
            else:
                self._ledger.go(Event.IMAGE_LOST, offset=0, starts_over=starts_over)
            return False
        return True

    def stage(self) -> None:
        """Arm the slot and say so; raises what the boot control raises."""
        boot_id = self._parts.boot.boot_id()
        if not self.is_booted():
            self._parts.boot.arm(self._slot)
        self._ledger.go(Event.TRIAL_ARMED, armed_boot_id=boot_id)

    # --- staged -> trial -------------------------------------------------------------------

    def restart(self) -> None:
        """Try the armed slot, or find out that it was tried; raises what the boot control raises."""
        boot, ledger, attempt = self._parts.boot, self._ledger, self._ledger.attempt
        if self.is_booted():
            self._begin_trial()
        elif boot.armed() is self._slot:
            if attempt.restarts >= MAX_RESTARTS:
                self._give_up(BootControlError("The armed slot is never started", restarts=attempt.restarts))
                return
            ledger.note(restarts=attempt.restarts + 1)
            try:
                self._restart()
            except FirmamentError as error:
                if error.retry is Retry.LATER:  # for want of space: nothing was restarted
                    ledger.note(restarts=attempt.restarts, stores=attempt.stores - 1)
                raise
        elif boot.boot_id() == attempt.armed_boot_id and attempt.restarts <= MAX_RESTARTS:
            # Nothing was restarted, so the try cannot be spent: somebody disarmed it.
            ledger.note(restarts=attempt.restarts + 1)
            boot.arm(self._slot)
        else:
            self._fell_back()

    def _begin_trial(self) -> None:
        boot_id = self._parts.boot.boot_id()
        deadline_s = math.ceil(self._parts.clock.monotonic_s() + self._parts.trial.deadline_s)
        self._passes = 0
        if self._ledger.state is State.STAGED:
            self._ledger.go(Event.TRIAL_BOOTED, trial_boot_id=boot_id, deadline_s=deadline_s)
        else:
            self._ledger.note(trial_boot_id=boot_id, deadline_s=deadline_s)

    def _fell_back(self) -> None:
        """Record that the boot loader started the previous image again."""
        attempt = self._ledger.attempt
        # Tidy: the slot that failed is not to be started by anybody. Twice is once.
        self._parts.boot.revert(self._parts.boot.booted())
        reason = attempt.reason
        if self._ledger.record.outcome is not Outcome.REVERTED:
            reason = reason_for(RevertedError("The trial ended in the previous image", slot=self._slot))
        self._ledger.go(Event.BOOTED_PREVIOUS, reason=reason)

    def _give_up(self, error: FirmamentError) -> None:
        self.disarm()
        self._ledger.go(Event.BOOT_CONTROL_GAVE_UP, reason=reason_for(error))

    def disarm(self) -> None:
        """Make sure that the slot of this attempt is not tried at the next start."""
        armed = self._parts.boot.armed()
        if armed is not None and armed is self._ledger.attempt.slot:
            self._parts.boot.retire(armed)

    # --- trial -> confirmed or reverted ----------------------------------------------------

    def examine(self) -> float:
        """Do what the trial needs now; return seconds until the next look, 0 when the machine moved."""
        boot, ledger = self._parts.boot, self._ledger
        if not self.is_booted():
            self._fell_back()
            return 0.0
        if ledger.record.outcome is Outcome.REVERTED:
            self._go_back()
            return 0.0
        if boot.primary() is self._slot:
            # Only `confirm` does that, and only after the checks had passed: the power went
            # between the act and its record.
            self.confirm()
            return 0.0
        if boot.boot_id() != ledger.attempt.trial_boot_id:
            self._begin_trial()
        return self._examine()

    def _examine(self) -> float:
        settings, attempt = self._parts.trial, self._ledger.attempt
        left_s = attempt.deadline_s - self._parts.clock.monotonic_s()
        trouble = self._parts.boot.trouble()
        if trouble is not None:
            self._fail(HealthError("The new image does not stay up"), tuple(trouble.splitlines()))
            return 0.0
        self._last = tuple(check.check() for check in self._parts.checks)
        sick = next((finding for finding in self._last if not finding.is_healthy), None)
        self._passes = 0 if sick is not None else self._passes + 1
        self._parts.events.tell(
            HealthChecked(
                attempt.attempt_id,
                is_healthy=sick is None,
                check=sick.check if sick is not None else "",
                detail=sick.detail if sick is not None else "",
                left_s=left_s,
            )
        )
        if self._passes >= settings.passes:
            self.confirm()
            return 0.0
        if left_s <= 0:
            log_lines = tuple(line for finding in self._last for line in (finding.check, *finding.detail.splitlines()))
            check = sick.check if sick is not None else "too few rounds"
            error = HealthError("The new image was not healthy in time", check=check, deadline_s=settings.deadline_s)
            self._fail(error, log_lines)
            return 0.0
        return float(min(settings.interval_s, max(left_s, 0.1)))

    def confirm(self) -> None:
        """Keep the new image: act, then say so."""
        self._parts.boot.confirm(self._slot)
        self._ledger.go(Event.HEALTH_PASSED, reason=Reason())

    def _fail(self, error: FirmamentError, log_lines: tuple[str, ...]) -> None:
        """Decide to go back: say so (or the reason is lost in the restart), then act."""
        self.decide_to_go_back(Event.HEALTH_FAILED, reason_for(error, log_lines))

    def decide_to_go_back(self, event: Event, reason: Reason) -> None:
        """Record the decision, then go back even if it could not be recorded."""
        try:
            self._ledger.go(event, reason=reason)
        except FirmamentError as error:
            # A device that cannot write must still be able to go back (anchors.md, Mender).
            log.warning("trial.decision-not-recorded", code=error.code, problem=error.problem)
        self._go_back()

    def _go_back(self) -> None:
        self._parts.boot.revert(self._slot.other)
        self._restart()

    def _restart(self) -> None:
        self._passes = 0
        log.info("restart.asked", attempt_id=self._ledger.attempt.attempt_id, slot=self._slot)
        self.is_restarting = self._parts.boot.restart() is Restart.UNDERWAY

    def break_loop(self) -> None:
        """End an attempt that goes in a circle, the safe way for the state it is in."""
        error = LoopError("The attempt does not get further", stores=self._ledger.attempt.stores)
        if self._ledger.state is State.STAGED and not self.is_booted():
            self._give_up(error)
        elif self._ledger.state is State.STAGED:
            self._begin_trial()
            self.decide_to_go_back(Event.HEALTH_FAILED, reason_for(error))
        elif self._ledger.record.outcome is not Outcome.REVERTED and self.is_booted():
            self.decide_to_go_back(Event.HEALTH_FAILED, reason_for(error))
        else:
            self.examine()
