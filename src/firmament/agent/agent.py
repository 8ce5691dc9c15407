"""The engine: one device, one attempt at a time, from a poll to a confirmed image or the previous one.

A daemon calls `tick` for ever; commands call `check`, `download`, `verify`, `apply`, `run_all`,
`confirm`, `revert`, `answer`, `status` and `history`. All of them move the same machine
(machine.py) over the same journal, so a command may be cut short at any point and the daemon goes
on, and the other way round. One at a time: the caller holds the instance lock.

What goes wrong is either a decision (it ends the attempt and is reported) or worth another try
(it is raised: a command shows it, `tick` backs off). Nothing here waits for the network while the
new image is on trial.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from firmament.agent.consent import Consents, Who
from firmament.agent.contact import Contact
from firmament.agent.events import Asked, Trouble
from firmament.agent.fetching import Fetching, reason_for
from firmament.agent.ledger import Ledger
from firmament.agent.machine import BEFORE_TRIAL, FINAL, Event, State
from firmament.agent.policy import (
    Answer,
    Step,
    Surroundings,
    Verdict,
    backoff_s,
    decide,
)
from firmament.agent.record import Ended, Reason
from firmament.agent.slots.port import CHECKPOINT_BYTES
from firmament.agent.status import Facts, Status, status_of
from firmament.agent.storing import StoppedError
from firmament.agent.trial import Trial
from firmament.errors import (
    ApplicabilityError,
    ConflictError,
    FirmamentError,
    NothingToDoError,
    RestartNeededError,
    Retry,
    TransferError,
    TrustError,
    WaitingForConsentError,
    error_for_code,
)
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from datetime import timedelta
    from pathlib import Path

    from firmament.agent.parts import Parts
    from firmament.core.consent import Mode
    from firmament.core.ids import AttemptId
    from firmament.core.manifest import UpdateClass

log = logger("agent.agent")

IDLE_TICK_S: Final = 3600.0
# Nothing happens by itself for so long at most; consent and windows are looked at more often.
WAITING_TICK_S: Final = 60.0
# How soon a plugged-in charger or an opened window is noticed.
RESTART_GRACE_S: Final = 300.0
# systemd gives services 90 s to stop; a machine that still runs after this did not go down.
SOMEBODY: Final = Who("unknown", "agent")
"""A program that uses this class and does not say for whom."""
MAX_COMMAND_TRIES: Final = 3
# A command retries what a moment may mend; the daemon has all the time in the world.


class Agent:
    """See the head of this file. `checkpoint_bytes` is for simulations."""

    def __init__(self, parts: Parts, *, checkpoint_bytes: int = CHECKPOINT_BYTES) -> None:
        self._parts = parts
        self._ledger = Ledger(parts)
        self._fetching = Fetching(parts, self._ledger, checkpoint_bytes=checkpoint_bytes)
        self._trial = Trial(parts, self._ledger)
        self._contact = Contact(parts, self._ledger, self._trial, self._fetching)
        self._consents = Consents(parts, self._ledger)
        self._surroundings = Surroundings(parts.disk, parts.policy, storage=parts.state_directory)
        self._is_started = False
        self._verdict = Verdict()
        self._asked_because = ""
        self._last_error: FirmamentError | None = None
        self._verified: AttemptId | None = None
        """The attempt whose slot was read back in this life of the agent."""
        self._failures = 0
        self._step_at_s = 0.0

    # --- the daemon ------------------------------------------------------------------------

    @property
    def is_restarting(self) -> bool:
        """Whether the machine was asked to go down: the daemon ends, or waits for the end."""
        return self._trial.is_restarting

    def start(self) -> None:
        """Open the journal and see what runs; once, before anything else. Commands call it themselves.

        Raises StateError when the journal cannot be used; the running image is untouched.
        """
        if self._is_started:
            return
        self._ledger.open()
        if self._ledger.state is State.IDLE:
            self._reconcile()
            self._fetching.clear()
        elif self._ledger.state is State.VERIFIED and self._trial.is_booted():
            # Armed, and started before that was written down: a trial has begun, and from here on
            # nobody can withdraw it.
            self._trial.stage()
        self._contact.begin()
        self._is_started = True
        log.info("agent.started", state=self._ledger.state, booted=self._parts.boot.booted())

    def tick(self) -> float:
        """Do what is due; return seconds until something is again. Raises only what nobody can mend."""
        self.start()
        if self._trial.is_restarting:
            if self._now_s() < self._step_at_s:
                return self._step_at_s - self._now_s()
            self._trial.is_restarting = False
        if self._ledger.state is not State.TRIAL and self._ledger.state not in FINAL:
            # After the end of an attempt its receipt comes first (`_settle`): what is delivered is forgotten.
            self._contact.deliver()
        if self._contact.may_poll and self._now_s() >= self._contact.poll_at_s:
            self._poll_quietly()
        while self._now_s() >= self._step_at_s and not self._parts.should_stop():
            wait_s = self._step_quietly()
            if self._trial.is_restarting:
                self._step_at_s = self._now_s() + RESTART_GRACE_S
                return 0.0
            if wait_s:
                self._step_at_s = self._now_s() + wait_s
        due = [self._step_at_s]
        if self._contact.may_poll:
            due.append(self._contact.poll_at_s)
        if self._ledger.state is not State.TRIAL:
            self._contact.deliver()
            due += [self._contact.send_at_s] if self._ledger.record.outbox else []
            due += [self._contact.consents_at_s] if self._ledger.unsaid() else []
        return max(0.0, min(due) - self._now_s())

    def poll_soon(self) -> None:
        """Poll at the next tick: somebody hinted that there is something."""
        self._contact.poll_at_s = self._now_s()

    def poll_by(self, at_s: float) -> None:
        """Poll at `at_s` (monotonic) if that is earlier; a hint does not shorten the waits after failed polls."""
        self._contact.hint(at_s)

    # --- commands --------------------------------------------------------------------------

    def check(self) -> Status:
        """Ask the server; raises NothingToDoError, or why what is offered is refused."""
        self.start()
        self._poll()
        self._contact.deliver()
        if self._ledger.state is State.IDLE:
            raise NothingToDoError("There is no release to install", running=self._version())
        return self.status()

    def download(self) -> Status:
        """Bring the offered release into the other slot; raises what stands against it."""
        self.start()
        if self._ledger.state is State.IDLE:
            self.check()
        self._drive(FINAL | {State.OFFERED, State.WAITING, State.FETCHING})
        return self._result(State.VERIFIED)

    def verify(self) -> Status:
        """Read the other slot back; raises NothingToDoError when none was fetched, ReadBackError if damaged."""
        self.start()
        attempt = self._ledger.record.attempt
        if attempt is None or attempt.manifest is None or attempt.slot is None or self._ledger.state in FINAL:
            raise NothingToDoError("No image is waiting in the other slot", state=self._ledger.state)
        if self._ledger.state in {State.OFFERED, State.WAITING, State.FETCHING}:
            raise NothingToDoError("The image is not complete yet", state=self._ledger.state, bytes=attempt.offset)
        self._parts.slots[attempt.slot].verify(attempt.manifest.image)
        self._verified = attempt.attempt_id
        return self.status()

    def apply(self) -> Status:
        """Try what was fetched; raises RestartNeededError when the machine is going down for it."""
        self.start()
        if self._ledger.state is State.IDLE:
            raise NothingToDoError("No image is waiting in the other slot", running=self._version())
        return self._to_the_end()

    def run_all(self) -> Status:
        """Check, download, apply and judge; raises as those do, and the error that ended the attempt."""
        self.start()
        if self._ledger.state is State.IDLE:
            self.check()
        return self._to_the_end()

    def install(self, parcel: Path, who_agrees: Who | None = None) -> Status:
        """Install what was carried here by hand; no network is needed, and the owner's rules count.

        `who_agrees` gives the owner's consent. Raises as `run_all` does; ConflictError while an
        image is on trial, and what is wrong with the parcel, which then has changed nothing.
        """
        self.start()
        if self._ledger.state in FINAL:
            self._settle()
        if self._ledger.state is not State.IDLE and self._ledger.state not in BEFORE_TRIAL:
            raise ConflictError("An update is on trial; wait for its end", state=self._ledger.state)
        self._contact.carry(parcel)
        if who_agrees is not None:
            self._consents.answer(Answer.NOW, who_agrees, None)
        return self._to_the_end()

    def receipts(self) -> dict[str, bytes]:
        """Return signed receipts, by file name, for every outcome that the server has not heard."""
        self.start()
        return self._contact.receipts()

    def confirm(self) -> Status:
        """Keep the image on trial now: a person has examined it."""
        self.start()
        if self._ledger.state is not State.TRIAL or not self._trial.is_booted():
            raise NothingToDoError("No image is on trial", state=self._ledger.state)
        self._trial.confirm()
        self._drive(FINAL)
        return self.status()

    def revert(self) -> Status:
        """Go back: from a trial to the previous image, before one by giving the attempt up.

        While idle it goes to the previous confirmed image, as long as the other slot holds it;
        raises NothingToDoError when it does not, ReadBackError when it is damaged.
        """
        self.start()
        if self._ledger.state is State.STAGED and self._trial.is_booted():
            self._trial.restart()  # not yet written down, but it is a trial
        state = self._ledger.state
        if state is State.TRIAL:
            self._trial.decide_to_go_back(Event.REVERT_ASKED, Reason("slot/reverted", "A person asked for it"))
            self._restart_or_go_on()
        elif state in BEFORE_TRIAL or state is State.STAGED:
            self._decline("A person gave the attempt up")
        elif state is State.IDLE:
            self._revert_to_previous()
        self._drive(FINAL | {State.TRIAL} if state is State.TRIAL else FINAL)
        return self.status()

    def answer(self, answer: Answer, who: Who = SOMEBODY, wish: timedelta | None = None) -> Status:
        """Take the owner's answer to the release in hand; `wish` is how long to put it off.

        Raises NothingToDoError if there is none to answer, PostponeLimitError.
        """
        self.start()
        self._consents.answer(answer, who, wish)
        if answer is Answer.SKIP:
            self._decline("The owner said no")
            self._drive(FINAL)
        return self._reconsider()

    def withdraw(self, who: Who) -> Status:
        """Take a yes back, until the new image is armed; raises NothingToDoError."""
        self.start()
        self._consents.withdraw(who)
        return self._reconsider()

    def opt_out(self, who: Who) -> Status:
        """Let no update install by itself from now on."""
        self.start()
        self._consents.opt_out(who)
        return self._reconsider()

    def opt_in(self, who: Who) -> Status:
        """Follow the policy again."""
        self.start()
        self._consents.opt_in(who)
        return self._reconsider()

    def choose(self, modes: dict[UpdateClass, Mode | None]) -> Status:
        """Set the owner's modes; raises SettingError."""
        self.start()
        self._consents.choose(modes)
        return self._reconsider()

    def status(self) -> Status:
        """Return what the device runs, what is in hand, and why it waits."""
        self.start()
        return status_of(
            self._ledger.record,
            booted=self._parts.boot.booted(),
            boot_id=self._parts.boot.boot_id(),
            waits_for=self._verdict.error,
            last_error=self._last_error,
            device=Facts(
                policy=self._parts.policy,
                language=self._parts.language,
                offline_s=self._parts.offline_s,
                now=self._parts.clock.now(),
                found=self._surroundings.look(),
            ),
        )

    def history(self) -> tuple[Ended, ...]:
        """Return the attempts that ended here, oldest first."""
        self.start()
        return self._ledger.record.history

    # --- polling and reports ---------------------------------------------------------------

    def _poll_quietly(self) -> None:
        try:
            self._poll(in_full=False)
        except FirmamentError as error:
            self._say_trouble(error, self._contact.poll_at_s - self._now_s())

    def _poll(self, *, in_full: bool = True) -> None:
        try:
            self._contact.poll(in_full=in_full)
        except (TrustError, ApplicabilityError):
            self._settle()
            raise
        if self._ledger.state is State.OFFERED:
            self._step_at_s = self._now_s()

    # --- the steps -------------------------------------------------------------------------

    def _step_quietly(self) -> float:
        try:
            wait_s = self._step()
        except StoppedError:
            return 0.0  # whoever interrupted comes first, then it goes on at once
        except FirmamentError as error:
            self._failures += 1
            wait_s = backoff_s(self._failures, self._parts.chance)
            self._say_trouble(error, wait_s)
            return wait_s
        self._failures = 0
        self._last_error = None
        return wait_s

    def _step(self) -> float:
        """Take the next step of the machine; return seconds until the one after, 0 for at once."""
        state = self._ledger.state
        if state is State.IDLE:
            return IDLE_TICK_S
        if state in FINAL:
            self._settle()
            return 0.0
        if self._ledger.is_circling():
            self._break_loop()
            return 0.0
        match state:
            case State.FETCHING:
                self._fetching.run()
                self._verified = self._ledger.attempt.attempt_id if self._ledger.state is State.VERIFIED else None
                return 0.0
            case State.VERIFIED:
                return self._stage()
            case State.STAGED:
                self._contact.deliver()
                self._trial.restart()
                return 0.0
            case State.TRIAL:
                return self._trial.examine()
            case _:
                return self._consider()

    def _consider(self) -> float:
        """Look whether the fetch may begin."""
        if self._consents.is_skipped:
            self._decline("The owner skipped this version")
            return 0.0
        verdict = self._judge(Step.FETCH)
        if verdict.is_met:
            slot = self._parts.boot.booted().other
            self._ledger.go(Event.CONDITIONS_MET, slot=slot, offset=0)
            self._contact.deliver()
            return 0.0
        return self._wait(verdict)

    def _stage(self) -> float:
        """Arm the other slot, once the conditions for a restart are met and the image is still there."""
        attempt_id = self._ledger.attempt.attempt_id
        verdict = self._judge(Step.RESTART)
        if not verdict.is_met:
            return self._wait(verdict)
        if self._verified != attempt_id and not self._trial.verify():
            return 0.0
        self._trial.stage()
        return 0.0

    def _judge(self, step: Step) -> Verdict:
        attempt, policy = self._ledger.attempt, self._consents.policy
        assert attempt.manifest is not None
        now = self._parts.clock.now()
        found = self._surroundings.look()
        self._verdict = decide(
            policy,
            step=step,
            update_class=attempt.manifest.update_class,
            preconditions=attempt.manifest.preconditions,
            consent=attempt.consent,
            # What lies on a stick costs no volume.
            found=replace(found, unmetered_link=True) if attempt.parcel else found,
            # A device without a clock of its own is at least as late as the offer it holds.
            now=max(now, attempt.issued_at) if attempt.issued_at is not None else now,
        )
        return self._verdict

    def _wait(self, verdict: Verdict) -> float:
        """Wait for consent, a window or a precondition: said once per reason, and never a failure."""
        assert verdict.error is not None
        reason = reason_for(verdict.error)
        if self._ledger.state is State.OFFERED:
            self._ledger.go(Event.CONDITIONS_MISSING, reason=reason)
            self._ask(verdict)
        elif self._ledger.attempt.reason.code != reason.code:
            self._ledger.explain(reason)
            self._ask(verdict)
        elif verdict.error.problem != self._asked_because:
            self._ask(verdict)  # "later" is over, or the agent was started anew: ask again
        self._asked_because = verdict.error.problem
        return WAITING_TICK_S

    def _ask(self, verdict: Verdict) -> None:
        attempt = self._ledger.attempt
        text = self._consents.text()
        if isinstance(verdict.error, WaitingForConsentError) and attempt.manifest is not None and text is not None:
            self._consents.note_asked()
            notes = dict(attempt.manifest.notes)
            self._parts.events.tell(
                Asked(attempt.attempt_id, attempt.manifest.release_id, notes, "\n".join(text.lines()))
            )

    def _settle(self) -> None:
        """Leave a final state: raise the floors after a confirmation, tell the server, and be idle."""
        ledger = self._ledger
        if ledger.state is State.CONFIRMED:
            manifest = ledger.attempt.manifest
            assert manifest is not None
            # Only now: a floor above what runs would shut out the image a fallback returns to. Going
            # back leaves the floor where it is: nothing older than before may follow.
            if ledger.attempt.takes_back is None:
                self._parts.floors.raise_sequence(manifest.sequence_number)
        if ledger.state in FINAL:
            self._contact.write_receipt()
            self._contact.deliver()
            ledger.go(Event.SETTLED)
            self._fetching.clear()
            self._verdict = Verdict()

    def _reconsider(self) -> Status:
        """Look at the conditions again at the next tick: the owner said something."""
        self._step_at_s = self._now_s()
        if self._ledger.state in BEFORE_TRIAL:
            self._judge(Step.FETCH if self._ledger.state in {State.OFFERED, State.WAITING} else Step.RESTART)
        return self.status()

    def _break_loop(self) -> None:
        match self._ledger.state:
            case State.FETCHING | State.VERIFIED:
                self._trial.disarm()
                self._fetching.give_up()
            case State.STAGED | State.TRIAL:
                self._trial.break_loop()
            case _:
                log.warning("ledger.circling", attempt_id=self._ledger.attempt.attempt_id)
                self._ledger.note(lives=0, stores=-1)
                # Waiting writes nothing that could wear out the device; it may take for ever.

    def _decline(self, message: str) -> None:
        self._trial.disarm()
        self._ledger.go(Event.OWNER_DECLINED, reason=Reason("", message))

    # --- going back while idle, and what the boot control says -----------------------------

    def _revert_to_previous(self) -> None:
        record = self._ledger.record
        previous = record.previous
        if previous is None:
            raise NothingToDoError("The other slot holds no previous image", running=self._version())
        self._parts.slots[previous.slot].verify(previous.image)
        # Act first: when the power goes now, the next start finds the previous image booted and
        # says so (`_reconcile`). Recorded first, the journal would name an image that does not run.
        self._parts.boot.revert(previous.slot)
        self._trial.is_restarting = self._parts.boot.restart().value == "underway"
        if self._trial.is_restarting:
            raise RestartNeededError("The machine is going down to return to the previous image")
        self._reconcile()

    def _reconcile(self) -> None:
        """While idle, believe the boot control about what runs."""
        boot, record = self._parts.boot, self._ledger.record
        booted = boot.booted()
        running, previous = record.running, record.previous
        if running is not None and running.slot is not booted:
            found = previous if previous is not None and previous.slot is booted else None
            log.warning("boot.other-slot", booted=booted, expected=running.slot, version=found.version if found else "")
            if found is not None:
                boot.revert(booted)  # the boot loader gave up the other one; this one was confirmed once
            self._ledger.runs(found, None)
            running = found
        if running is not None or boot.primary() is booted:
            # Boot loaders that count every start need to hear that this one is kept. What is neither
            # in the journal nor primary was never confirmed: a lost journal is no blessing.
            boot.confirm(booted)
        armed = boot.armed()
        if armed is not None and armed is not booted:
            boot.retire(armed)  # nothing is in hand, so nothing is to be tried

    # --- driving by command ----------------------------------------------------------------

    def _to_the_end(self) -> Status:
        attempt_id = self._ledger.attempt.attempt_id if self._ledger.record.attempt is not None else None
        self._drive(set(State) - {State.IDLE})
        ended = self._ledger.record.has_ended(attempt_id) if attempt_id is not None else None
        if ended is not None and ended.code:
            raise error_for_code(ended.code)(ended.message, status=ended.status)
        return self._result(State.IDLE)

    def _drive(self, states: AbstractSet[State]) -> None:
        """Step while the machine is in one of `states`; raises what stands in the way."""
        tries = 0
        while self._ledger.state in states:
            try:
                wait_s = self._step()
            except TransferError as error:
                tries += 1
                if tries >= MAX_COMMAND_TRIES or error.retry is Retry.NEVER:
                    raise
                self._parts.clock.sleep(backoff_s(1, self._parts.chance, first_s=self._parts.retry_wait_s))
                continue
            self._restart_or_go_on()
            if wait_s and self._ledger.state in BEFORE_TRIAL and self._verdict.error is not None:
                self._contact.deliver()  # before a trial only a missing condition makes it wait
                raise self._verdict.error
            if wait_s:
                self._parts.clock.sleep(wait_s)
        self._contact.deliver()

    def _restart_or_go_on(self) -> None:
        if self._trial.is_restarting:
            raise RestartNeededError("The machine is going down", slot=self._ledger.attempt.slot)

    def _result(self, wanted: State) -> Status:
        if self._ledger.state is wanted:
            return self.status()
        history = self._ledger.record.history
        if history and history[-1].code:
            raise error_for_code(history[-1].code)(history[-1].message, status=history[-1].status)
        return self.status()

    # --- small things ----------------------------------------------------------------------

    def _say_trouble(self, error: FirmamentError, wait_s: float) -> None:
        self._last_error = error
        log.warning("agent.trouble", code=error.code, problem=error.problem, again_in_s=round(wait_s, 1))
        self._parts.events.tell(Trouble(error.code, str(error), wait_s))

    def _version(self) -> str:
        running = self._ledger.record.running
        return running.version if running is not None else "unknown"

    def _now_s(self) -> float:
        return self._parts.clock.monotonic_s()
