"""Everything this package raises on purpose.

* FirmamentError                 firmament
  x TrustError                   trust                the bytes are not what an authorised author signed
    + ThresholdNotMetError       trust/threshold-not-met
    + RollbackError              trust/rollback
    + ExpiredError               trust/expired
    + MalformedMetadataError     trust/malformed-metadata
    + DigestMismatchError        trust/digest-mismatch
    + UnknownTargetError         trust/unknown-target
    + ReplayError                trust/replay
    + DisagreementError          trust/disagreement
    + SignatureError             trust/signature
    + AnchorMissingError         trust/anchor-missing
    + SealedError                trust/sealed
    + KeyWrapError               trust/key-wrap
    + MalformedPayloadError      trust/malformed-payload
    + ChainBrokenError           trust/chain-broken
    + LogProofError              trust/log-proof
  x ApplicabilityError           applicability        authentic, but not for this device
    + ProductMismatchError       applicability/product-mismatch
    + HardwareMismatchError      applicability/hardware-mismatch
    + DeviceMismatchError        applicability/device-mismatch
    + UnknownManifestError       applicability/unknown-manifest
    + RequirementError           applicability/requirement
    + PreconditionError          applicability/precondition
    + NoInstallerError           applicability/no-installer
    + PrecursorMismatchError     applicability/precursor-mismatch
    + UnknownMethodError         applicability/unknown-method
  x TransferError                transfer             the bytes did not arrive
    + UnreachableError           transfer/unreachable
    + LengthExceededError        transfer/length-exceeded
    + TruncatedError             transfer/truncated
    + SlowError                  transfer/slow
    + RedirectError              transfer/redirect
    + EncodingError              transfer/encoding
    + RangeError                 transfer/range
    + HttpStatusError            transfer/http-status
    + TlsError                   transfer/tls
  x SlotError                    slot                 the device could not store or boot the image
    + SlotTooSmallError          slot/too-small
    + DiskFullError              slot/disk-full
    + ReadOnlyError              slot/read-only
    + ReadBackError              slot/read-back
    + UnsafeArchiveError         slot/unsafe-archive
    + BootControlError           slot/boot-control
    + HealthError                slot/health
    + RevertedError              slot/reverted
  x StateError                   state                what this program wrote down cannot be used
    + JournalError               state/journal
    + LockedError                state/locked
    + CorruptStateError          state/corrupt
    + NotEnrolledError           state/not-enrolled
    + TornPublishError           state/torn-publish
    + LoopError                  state/loop
  x RequestError                 request              the caller sent something that cannot be done
    + MalformedError             request/malformed
    + TooLargeError              request/too-large
    + NotFoundError              request/not-found
    + ConflictError              request/conflict
    + UnauthenticatedError       request/unauthenticated
    + ForbiddenError             request/forbidden
    + RateLimitedError           request/rate-limited
    + OverloadedError            request/overloaded
    + EnrolmentTokenError        request/enrolment-token
  x PolicyError                  policy               allowed in principle, not now
    + WaitingForConsentError     policy/waiting-for-consent
    + OutsideWindowError         policy/outside-window
    + NothingToDoError           policy/nothing-to-do
    + RestartNeededError         policy/restart-needed
    + PostponeLimitError         policy/postpone-limit
    + NoContentKeyError          policy/no-content-key
  x LocalError                   local                this machine, its files or its settings
    + SettingError               local/setting
    + FileError                  local/file
    + KeyFileError               local/key
    + PassphraseError            local/passphrase
    + TokenDeviceError           local/hsm
    + ClockError                 local/clock
    + AddressInUseError          local/address-in-use
    + DependencyMissingError     local/dependency-missing
  x AccessError                  access               allowed, but one more proof or person is missing
    + SecondFactorError          access/second-factor
    + SecondPersonError          access/second-person
    + OutsideSignInError         access/outside-sign-in
  x RepeatError                  repeat               a request with an idempotency key cannot be done now
    + KeyReusedError             repeat/key-reused
    + KeyBusyError               repeat/busy
    + AnswerLostError            repeat/answer-lost

`code` is a published name: it may be added, never renamed or reused. `exit_code` is what the
commands return (table in docs/reference/errors.md). Wrong call order is a RuntimeError.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Final


class Retry(StrEnum):
    """What asking again would do."""

    NEVER = "never"
    """The same answer comes back; a person or a new release must act."""
    LATER = "later"
    """Back off, then try the same thing again."""
    AFTER_REFRESH = "after-refresh"
    """Fetch fresh metadata first."""


MAX_SHOWN_LENGTH: Final = 400
# The longest path or reason seen in practice is below 300 characters.


class FirmamentError(Exception):
    """Base of the tree.

    `problem` is one clause without a final full stop; `facts` are the values involved (never
    secrets). `str()` joins problem, facts and the class's hint into a sentence for people.
    """

    code: ClassVar[str] = "firmament"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    retry: ClassVar[Retry] = Retry.NEVER
    hint: ClassVar[str] = "Run the command again with -v to see the cause."

    def __init__(self, problem: str, **facts: object) -> None:
        super().__init__(problem)
        self.problem: Final = problem
        self.facts: Final = facts

    def __str__(self) -> str:
        """Problem, facts and hint as one or two sentences, safe to show on a terminal."""
        facts = ", ".join(f"{name}={_shown(value)}" for name, value in self.facts.items())
        return f"{_shown(self.problem)}{f' ({facts})' if facts else ''}. {self.hint}"


def _shown(value: object) -> str:
    """Escape what is not printable (facts may come from an attacker), and keep it short."""
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(value)[:MAX_SHOWN_LENGTH])
    return text if len(str(value)) <= MAX_SHOWN_LENGTH else f"{text}..."


# --- trust ---------------------------------------------------------------------------------


class TrustError(FirmamentError):
    code = "trust"
    exit_code = 20
    http_status = 422
    hint = "Do not install it. Find out who produced these bytes."


class ThresholdNotMetError(TrustError):
    code = "trust/threshold-not-met"
    exit_code = 21
    hint = "Ask the missing key holders to sign, then publish again."


class RollbackError(TrustError):
    code = "trust/rollback"
    exit_code = 22
    http_status = 409
    hint = "Publish the release under a higher sequence number; devices never go back."


class ExpiredError(TrustError):
    code = "trust/expired"
    exit_code = 23
    retry = Retry.AFTER_REFRESH
    hint = "Renew the role on the server; if it is fresh there, check the device clock."


class MalformedMetadataError(TrustError):
    code = "trust/malformed-metadata"
    exit_code = 24
    hint = "Publish the metadata again with the release tool; do not edit it by hand."


class DigestMismatchError(TrustError):
    code = "trust/digest-mismatch"
    exit_code = 25
    retry = Retry.AFTER_REFRESH
    hint = "The bytes are not the ones that were signed: publish them again, and find out who changed them."


class UnknownTargetError(TrustError):
    code = "trust/unknown-target"
    exit_code = 26
    hint = "Publish the release to the image repository before assigning it."


class ReplayError(TrustError):
    code = "trust/replay"
    exit_code = 27
    retry = Retry.AFTER_REFRESH
    hint = "The answer was not made for this question; look for a proxy or an attacker between device and server."


class DisagreementError(TrustError):
    code = "trust/disagreement"
    exit_code = 28
    hint = "Director and image repository describe different bytes; treat the director as compromised."


class SignatureError(TrustError):
    code = "trust/signature"
    exit_code = 29
    hint = "Sign again with the key that is pinned for this purpose."


class AnchorMissingError(TrustError):
    code = "trust/anchor-missing"
    exit_code = 30
    hint = "Provision the device with the root metadata first; without it nothing is trusted."


class SealedError(TrustError):
    code = "trust/sealed"
    exit_code = 31
    hint = "The sealed payload was changed, cut or made with another key: publish it again and find out by whom."


class KeyWrapError(TrustError):
    code = "trust/key-wrap"
    exit_code = 32
    retry = Retry.AFTER_REFRESH
    hint = "Ask the director again; if it stays, enrol the device anew: its wrapping key is not the enrolled one."


class MalformedPayloadError(TrustError):
    code = "trust/malformed-payload"
    exit_code = 33
    hint = "The payload is not one that the release tool makes; build it again, the whole image still installs."


class ChainBrokenError(TrustError):
    code = "trust/chain-broken"
    exit_code = 34
    hint = "Somebody changed or removed events: keep the file, and find out who had access since the last good export."


class LogProofError(TrustError):
    code = "trust/log-proof"
    exit_code = 35
    hint = "The server showed another release log than before: keep both tree heads and find out who changed it."


# --- applicability -------------------------------------------------------------------------


class ApplicabilityError(FirmamentError):
    code = "applicability"
    exit_code = 40
    http_status = 409
    hint = "Assign a release that was made for this device."


class ProductMismatchError(ApplicabilityError):
    code = "applicability/product-mismatch"
    exit_code = 41
    hint = "Correct the device's product in the inventory or assign another release."


class HardwareMismatchError(ApplicabilityError):
    code = "applicability/hardware-mismatch"
    exit_code = 42
    hint = "Build the release for this hardware, or correct the hardware the device states."


class DeviceMismatchError(ApplicabilityError):
    code = "applicability/device-mismatch"
    exit_code = 43
    hint = "The answer was made for another device; look for a mixed-up identity or an attacker."


class UnknownManifestError(ApplicabilityError):
    code = "applicability/unknown-manifest"
    exit_code = 44
    hint = "Update the agent first; it does not know this manifest version or field."


class RequirementError(ApplicabilityError):
    code = "applicability/requirement"
    exit_code = 45
    hint = "Install the stepping-stone release that the manifest names first."


class PreconditionError(ApplicabilityError):
    code = "applicability/precondition"
    exit_code = 46
    retry = Retry.LATER
    hint = "The update waits; meet the condition (power, space, battery) and it goes on by itself."


class NoInstallerError(ApplicabilityError):
    code = "applicability/no-installer"
    exit_code = 47
    hint = "Install the plug-in for this installer type on the device, or build another type."


class PrecursorMismatchError(ApplicabilityError):
    code = "applicability/precursor-mismatch"
    exit_code = 48
    retry = Retry.AFTER_REFRESH
    hint = "The device holds another image than the delta starts from; it takes the whole image instead."


class UnknownMethodError(ApplicabilityError):
    code = "applicability/unknown-method"
    exit_code = 49
    hint = "Update the agent first or publish the image whole; it does not know this payload method."


# --- transfer ------------------------------------------------------------------------------


class TransferError(FirmamentError):
    code = "transfer"
    exit_code = 50
    http_status = 502
    retry = Retry.LATER
    hint = "Check the connection; the agent continues where it stopped."


class UnreachableError(TransferError):
    code = "transfer/unreachable"
    exit_code = 51
    hint = "Check the address, the network and that the server runs."


class LengthExceededError(TransferError):
    code = "transfer/length-exceeded"
    exit_code = 52
    retry = Retry.NEVER
    hint = "More bytes came than were promised: do not raise the limit, find out who sent them."


class TruncatedError(TransferError):
    code = "transfer/truncated"
    exit_code = 53
    hint = "The connection ended early; the agent continues where it stopped."


class SlowError(TransferError):
    code = "transfer/slow"
    exit_code = 54
    hint = "The peer sends too slowly; check the link or lower the minimum rate in the agent's settings."


class RedirectError(TransferError):
    code = "transfer/redirect"
    exit_code = 55
    retry = Retry.NEVER
    hint = "Configure the final address; the agent follows no redirect."


class EncodingError(TransferError):
    code = "transfer/encoding"
    exit_code = 56
    retry = Retry.NEVER
    hint = "Switch off Content-Encoding for the repository on the server or proxy."


class RangeError(TransferError):
    code = "transfer/range"
    exit_code = 57
    hint = "The server answered another range than was asked; check the proxy or CDN."


class HttpStatusError(TransferError):
    code = "transfer/http-status"
    exit_code = 58
    hint = "Look up the request in the server's log by its request id."


class TlsError(TransferError):
    code = "transfer/tls"
    exit_code = 59
    hint = "Check the server's certificate, its CA on this machine, and both clocks."


# --- slot ----------------------------------------------------------------------------------


class SlotError(FirmamentError):
    code = "slot"
    exit_code = 60
    hint = "Check the device's storage; the running image is untouched."


class SlotTooSmallError(SlotError):
    code = "slot/too-small"
    exit_code = 61
    hint = "Build a smaller image or repartition; the agent never writes past a slot."


class DiskFullError(SlotError):
    code = "slot/disk-full"
    exit_code = 62
    http_status = 507
    retry = Retry.LATER
    hint = "Free the space named and try again; nothing was lost."


class ReadOnlyError(SlotError):
    code = "slot/read-only"
    exit_code = 63
    retry = Retry.LATER
    hint = "Mount the state directory and the slots writable."


class ReadBackError(SlotError):
    code = "slot/read-back"
    exit_code = 64
    hint = "The storage returned other bytes than were written: replace it."


class UnsafeArchiveError(SlotError):
    code = "slot/unsafe-archive"
    exit_code = 65
    hint = "Build the bundle with the release tool; it never makes such an entry."


class BootControlError(SlotError):
    code = "slot/boot-control"
    exit_code = 66
    hint = "Check the boot environment with `firmament-agent doctor`."


class HealthError(SlotError):
    code = "slot/health"
    exit_code = 67
    hint = "The new image did not prove itself healthy and was given back; read the check's output."


class RevertedError(SlotError):
    code = "slot/reverted"
    exit_code = 68
    hint = "The boot loader gave the previous image back; read the boot log of the trial."


# --- state ---------------------------------------------------------------------------------


class StateError(FirmamentError):
    code = "state"
    exit_code = 70
    hint = "Run doctor; it names the file and what to do."


class JournalError(StateError):
    code = "state/journal"
    exit_code = 71
    hint = "The journal cannot be written or read; check the disk that holds the state directory."


class LockedError(StateError):
    code = "state/locked"
    exit_code = 72
    http_status = 409
    retry = Retry.LATER
    hint = "Another instance holds the lock; stop it or wait until it ends."


class CorruptStateError(StateError):
    code = "state/corrupt"
    exit_code = 73
    hint = "Both copies are damaged: keep the file for analysis and provision again."


class NotEnrolledError(StateError):
    code = "state/not-enrolled"
    exit_code = 74
    hint = "Run `firmament-agent provision FILE` with a provisioning file from the server."


class TornPublishError(StateError):
    code = "state/torn-publish"
    exit_code = 75
    retry = Retry.LATER
    hint = "An earlier publish was cut short; publish again, the old repository is still served."


class LoopError(StateError):
    code = "state/loop"
    exit_code = 76
    hint = "The same step was begun again and again without getting further; read the agent's log."


# --- request -------------------------------------------------------------------------------


class RequestError(FirmamentError):
    code = "request"
    exit_code = 80
    http_status = 400
    hint = "Correct the request; nothing was changed."


class MalformedError(RequestError):
    code = "request/malformed"
    exit_code = 81
    hint = "Correct the named field; nothing was changed."


class TooLargeError(RequestError):
    code = "request/too-large"
    exit_code = 82
    http_status = 413
    hint = "Send less, or raise the limit in the server's settings if it is too low for you."


class NotFoundError(RequestError):
    code = "request/not-found"
    exit_code = 83
    http_status = 404
    hint = "List what exists and check the spelling."


class ConflictError(RequestError):
    code = "request/conflict"
    exit_code = 84
    http_status = 409
    hint = "Look at the current state and decide again; nothing was changed."


class UnauthenticatedError(RequestError):
    code = "request/unauthenticated"
    exit_code = 85
    http_status = 401
    hint = "Sign in, or give a valid token or device certificate."


class ForbiddenError(RequestError):
    code = "request/forbidden"
    exit_code = 86
    http_status = 403
    hint = "Ask somebody whose role allows it."


class RateLimitedError(RequestError):
    code = "request/rate-limited"
    exit_code = 87
    http_status = 429
    retry = Retry.LATER
    hint = "Wait as long as Retry-After says."


class OverloadedError(RequestError):
    code = "request/overloaded"
    exit_code = 88
    http_status = 503
    retry = Retry.LATER
    hint = "The server is busy; wait as long as Retry-After says."


class EnrolmentTokenError(RequestError):
    code = "request/enrolment-token"
    exit_code = 89
    http_status = 401
    hint = "Make a new token for this device with `firmament device token`."


# --- policy --------------------------------------------------------------------------------


class PolicyError(FirmamentError):
    code = "policy"
    exit_code = 90
    http_status = 409
    retry = Retry.LATER
    hint = "Wait, or change the policy on the device."


class WaitingForConsentError(PolicyError):
    code = "policy/waiting-for-consent"
    exit_code = 11
    hint = "Answer with `firmament-agent apply --yes`, or wait for the owner."


class OutsideWindowError(PolicyError):
    code = "policy/outside-window"
    exit_code = 92
    hint = "The update starts by itself when the window opens."


class NothingToDoError(PolicyError):
    code = "policy/nothing-to-do"
    exit_code = 5
    hint = "Nothing needs to be done."


class RestartNeededError(PolicyError):
    code = "policy/restart-needed"
    exit_code = 10
    hint = "Restart the device to try the new image."


class PostponeLimitError(PolicyError):
    code = "policy/postpone-limit"
    exit_code = 95
    retry = Retry.NEVER
    hint = "Install it now or tonight, or skip this version."


class NoContentKeyError(PolicyError):
    code = "policy/no-content-key"
    exit_code = 96
    hint = "Give the server the keys with `firmament release give-keys`, or register the device's new wrapping key."


# --- local ---------------------------------------------------------------------------------


class LocalError(FirmamentError):
    code = "local"
    exit_code = 100
    hint = "Check the file and the settings named."


class SettingError(LocalError):
    code = "local/setting"
    exit_code = 101
    hint = "Correct the setting; docs/reference/settings.md lists them all."


class FileError(LocalError):
    code = "local/file"
    exit_code = 102
    hint = "Check that the file exists, is complete and may be read."


class KeyFileError(LocalError):
    code = "local/key"
    exit_code = 103
    hint = "Name an existing key, e.g. `file:keys/release.pem`, readable by its owner only (mode 0600)."


class PassphraseError(LocalError):
    code = "local/passphrase"
    exit_code = 104
    hint = "Give the passphrase at the prompt, or in the file that FIRMAMENT_PASSPHRASE_FILE names."


class TokenDeviceError(LocalError):
    code = "local/hsm"
    exit_code = 105
    hint = "Check PYKCS11LIB, the token's label and its PIN."


class ClockError(LocalError):
    code = "local/clock"
    exit_code = 106
    hint = "Set this machine's clock; signatures need a date that is true."


class AddressInUseError(LocalError):
    code = "local/address-in-use"
    exit_code = 107
    hint = "Stop the program that holds the port, or choose another with --port."


class DependencyMissingError(LocalError):
    code = "local/dependency-missing"
    exit_code = 108
    hint = "Install the extra that is named, e.g. `pip install 'firmament[server]'`."


# --- access --------------------------------------------------------------------------------


class AccessError(FirmamentError):
    code = "access"
    exit_code = 110
    http_status = 403
    hint = "Give the proof that is asked for, or ask somebody who can."


class SecondFactorError(AccessError):
    code = "access/second-factor"
    exit_code = 111
    http_status = 401
    hint = "Give the six digits of the authenticator, or one recovery code."


class SecondPersonError(AccessError):
    code = "access/second-person"
    exit_code = 112
    hint = "Ask a colleague whose role allows it; nobody approves their own work."


class OutsideSignInError(AccessError):
    code = "access/outside-sign-in"
    exit_code = 113
    http_status = 401
    hint = "Sign in again from the start; if it stays, compare the provider's settings with the server's."


# --- repeat --------------------------------------------------------------------------------


class RepeatError(FirmamentError):
    code = "repeat"
    exit_code = 120
    http_status = 409
    hint = "Look at what the first request did before sending it again."


class KeyReusedError(RepeatError):
    code = "repeat/key-reused"
    exit_code = 121
    hint = "Use a new idempotency key for a new request; nothing was changed by this one."


class KeyBusyError(RepeatError):
    code = "repeat/busy"
    exit_code = 122
    retry = Retry.LATER
    hint = "The first request with this key is still being done; ask again as Retry-After says."


class AnswerLostError(RepeatError):
    code = "repeat/answer-lost"
    exit_code = 123
    hint = "The change was made, its answer was lost: look at the current state, do not send it again."


def error_classes() -> tuple[type[FirmamentError], ...]:
    """Every class of the tree, parents before children, in the order they are written."""
    found: list[type[FirmamentError]] = [FirmamentError]
    for cls in found:
        found.extend(cls.__subclasses__())
    return tuple(dict.fromkeys(found))


def error_for_code(code: str) -> type[FirmamentError]:
    """Find the class that a published code names; an unknown code answers with its nearest parent.

    A peer of a later release may send codes that this one does not know (house rule 12).
    """
    by_code = {cls.code: cls for cls in error_classes()}
    while code not in by_code and "/" in code:
        code = code.rpartition("/")[0]
    return by_code.get(code, FirmamentError)
