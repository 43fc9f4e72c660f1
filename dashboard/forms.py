"""What people may send: the filters of a list, a reason, a log-in."""

from datetime import datetime, timedelta
from typing import Any

from django import forms

from audit.batch import OLDEST
from audit.event_queries import EventFilter
from audit.findings.queries import FindingFilter
from audit.models import FindingKind, Severity
from audit.secrets import looks_like_a_secret
from audit.targets import Scope, ScopeKind, UnknownScope
from leases.action_queries import NOT_VERIFIED, ActionFilter
from leases.models import Certainty, LeaseState
from leases.models.actions import ActionKind, JobState
from leases.models.sessions import Place
from leases.queries import LeaseFilter
from leases.session_queries import SessionFilter
from leases.usage import Span, UseFilter
from leases.workload_queries import LAST, LIVE, NAME, WorkloadFilter

STATES = [
    ("open", "not ended"),
    *((state, str(state)) for state in LeaseState.values),
    ("any", "any"),
]
REVIEW_DAYS = {"7": "7 days", "30": "30 days", "90": "90 days"}
USUAL_DAYS = "30"
# https://developer.hashicorp.com/vault/docs/concepts/policies and what the log has besides
OPERATIONS = (
    "read",
    "update",
    "create",
    "delete",
    "list",
    "patch",
    "help",
    "header",
    "resolve-role",
    "revoke",
    "renew",
)
PERIODS = {"1h": ("1 hour", 1), "24h": ("24 hours", 24), "7d": ("7 days", 7 * 24), "30d": ("30 days", 30 * 24)}
USUAL_PERIOD = "24h"


def no_secret(text: str) -> None:
    """What people write beside an action stays for good, and goes into exports and messages."""
    if looks_like_a_secret(text):
        raise forms.ValidationError(
            "This has a token, a JWT or another secret in it, which would be kept for good. Name its accessor."
        )


class LeaseFilterForm(forms.Form):
    state = forms.ChoiceField(choices=STATES, required=False)
    database = forms.ChoiceField(required=False)
    certainty = forms.ChoiceField(choices=[("", "any"), *((c, c) for c in Certainty.values)], required=False)
    namespace = forms.CharField(max_length=253, required=False)
    service_account = forms.CharField(max_length=253, required=False, label="Service account")
    pod = forms.CharField(max_length=253, required=False, label="Pod contains")

    def __init__(self, *args: Any, databases: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["database"] = forms.ChoiceField(
            choices=[("", "any"), *((name, name) for name in databases), ("unknown", "not known")], required=False
        )
        self.order_fields(["state", "database", "certainty", "namespace", "service_account", "pod"])

    def where(self) -> LeaseFilter:
        """The filter; needs a valid form."""
        cleaned = {name: value.strip() for name, value in self.cleaned_data.items()}
        state = cleaned.pop("state") or "open"
        return LeaseFilter(state="" if state == "any" else state, **cleaned)

    @property
    def narrowed(self) -> bool:
        """Whether anything but the default is asked for."""
        return any(value for name, value in self.data.items() if name in self.fields and value != "open")


class SessionFilterForm(forms.Form):
    state = forms.ChoiceField(choices=[("", "any"), ("open", "open now"), ("ended", "ended")], required=False)
    place = forms.ChoiceField(
        choices=[
            ("", "any"),
            *((place, f"from {place}" if place == Place.ELSEWHERE else place) for place in Place.values),
        ],
        required=False,
        label="Came from",
    )
    lease = forms.ChoiceField(choices=[("", "any"), ("none", "without a lease")], required=False)
    address = forms.CharField(max_length=45, required=False, label="Address")
    user = forms.CharField(max_length=128, required=False, label="User contains")

    def where(self) -> SessionFilter:
        """The filter; needs a valid form."""
        return SessionFilter(**{name: value.strip() for name, value in self.cleaned_data.items()})

    @property
    def narrowed(self) -> bool:
        """Whether anything is asked for."""
        return any(value for name, value in self.data.items() if name in self.fields)


class WorkloadFilterForm(forms.Form):
    """Service accounts or pods that read credentials in a period, or hold some now."""

    by = forms.ChoiceField(choices=[("account", "service accounts"), ("pod", "pods")], required=False, label="List")
    period = forms.ChoiceField(
        choices=[(key, f"the last {name}") for key, (name, _) in PERIODS.items()], label="Read in"
    )
    holding = forms.ChoiceField(choices=[("", "whether or not"), ("now", "leases now")], required=False, label="Holds")
    cluster = forms.ChoiceField(required=False)
    namespace = forms.CharField(max_length=253, required=False)
    text = forms.CharField(max_length=253, required=False, label="Name contains")
    sort = forms.ChoiceField(
        choices=[(LAST, "last read first"), (LIVE, "most live leases first"), (NAME, "name")],
        required=False,
        label="Order",
    )

    def __init__(self, *args: Any, clusters: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["cluster"] = forms.ChoiceField(
            choices=[("", "any"), *((name, name) for name in clusters)], required=False
        )
        self.order_fields(["by", "period", "holding", "cluster", "namespace", "text", "sort"])

    def where(self, *, now: datetime) -> WorkloadFilter:
        """The filter; needs a valid form."""
        cleaned = {name: value.strip() for name, value in self.cleaned_data.items()}
        _, hours = PERIODS[cleaned["period"]]
        return WorkloadFilter(
            since=now - timedelta(hours=hours),
            cluster=cleaned["cluster"],
            namespace=cleaned["namespace"],
            text=cleaned["text"],
            holding=bool(cleaned["holding"]),
        )

    @property
    def narrowed(self) -> bool:
        """Whether anything but another order or list is asked for."""
        return any(value for name, value in self.data.items() if name in {"holding", "cluster", "namespace", "text"})


class ReviewForm(forms.Form):
    """Which database's accesses are reviewed, over how many days."""

    database = forms.ChoiceField(required=False)
    days = forms.ChoiceField(choices=list(REVIEW_DAYS.items()), label="Period")

    def __init__(self, *args: Any, databases: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["database"] = forms.ChoiceField(
            choices=[("", "choose one"), *((name, name) for name in databases)],
            required=False,
            error_messages={"invalid_choice": "No such database is watched. Choose one of the list."},
        )
        self.order_fields(["database", "days"])

    def period(self) -> timedelta:
        """Needs a valid form."""
        return timedelta(days=int(self.cleaned_data["days"]))


def _moment(label: str) -> forms.DateTimeField:
    return forms.DateTimeField(
        required=False,
        label=label,
        widget=forms.DateTimeInput(attrs={"type": "datetime-local", "step": "any"}, format="%Y-%m-%dT%H:%M:%S"),
        error_messages={"invalid": "A moment is written as 2026-11-25T14:30, in UTC."},
    )


class AccessForm(forms.Form):
    """Which database, at which instant, compared with which other one. Times are UTC unless they name their offset."""

    database = forms.ChoiceField(required=False)
    at = _moment("Moment (UTC)")
    to = _moment("Compared with (UTC)")

    def __init__(self, *args: Any, databases: list[str], now: datetime, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.now = now
        self.fields["database"] = forms.ChoiceField(
            choices=[("", "choose one"), *((name, name) for name in databases), ("unknown", "not known")],
            required=False,
            error_messages={"invalid_choice": "No such database is watched. Choose one of the list."},
        )
        self.order_fields(["database", "at", "to"])

    def clean_at(self) -> datetime | None:
        return self._past("at")

    def clean_to(self) -> datetime | None:
        return self._past("to")

    def _past(self, name: str) -> datetime | None:
        moment: datetime | None = self.cleaned_data[name]
        if moment and moment > self.now:
            raise forms.ValidationError("This is still to come. Choose a moment up to now; it is UTC.")
        if moment and moment < OLDEST:
            raise forms.ValidationError("No audit log can be of that time.")
        return moment


class EventFilterForm(forms.Form):
    """The audit search page. `login` has no field of its own to type in: pages link to it."""

    path = forms.CharField(max_length=1000, required=False, label="Path begins with")
    identity = forms.CharField(max_length=500, required=False, label="Account or identity")
    address = forms.CharField(max_length=100, required=False, label="Address")
    operation = forms.ChoiceField(
        choices=[("", "any"), *((name, name) for name in OPERATIONS)],
        required=False,
    )
    vault = forms.ChoiceField(required=False)
    from_ = _moment("From (UTC)")
    to = _moment("To (UTC)")
    request_id = forms.CharField(max_length=1000, required=False, label="Request id")
    own = forms.ChoiceField(
        choices=[("", "left out"), ("any", "shown too"), ("only", "shown alone")],
        required=False,
        label="Own requests",
    )
    errors_only = forms.BooleanField(required=False, label="Errors only")
    login = forms.IntegerField(required=False, min_value=1, max_value=2**62, widget=forms.HiddenInput)

    def __init__(self, *args: Any, vaults: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # `from` is no name in Python
        self.fields = {("from" if name == "from_" else name): field for name, field in self.fields.items()}
        self.fields["vault"] = forms.ChoiceField(
            choices=[("", "any"), *((name, name) for name in vaults)], required=False
        )

    def clean(self) -> dict[str, Any]:
        cleaned = self.cleaned_data
        if cleaned.get("from") and cleaned.get("to") and cleaned["from"] >= cleaned["to"]:
            self.add_error("to", "The period ends before it begins.")
        return cleaned

    def where(self) -> EventFilter:
        """The filter; needs a valid form."""
        cleaned: dict[str, Any] = {
            name: value.strip() if isinstance(value, str) else value for name, value in self.cleaned_data.items()
        }
        return EventFilter(
            from_at=cleaned.pop("from"),
            to_at=cleaned.pop("to"),
            errors=cleaned.pop("errors_only"),
            # as devices write it: without a slash in front
            path=cleaned.pop("path").removeprefix("/").removeprefix("v1/"),
            **cleaned,
        )

    @property
    def narrowed(self) -> bool:
        """Whether anything is asked for."""
        return any(value for name, value in self.data.items() if name in self.fields)


class UseForm(forms.Form):
    """Over which period, and for whom, it is shown who used which database. Times are UTC unless they name their offset."""

    # the links beside the title choose it
    period = forms.ChoiceField(
        choices=[(key, name) for key, (name, _) in PERIODS.items()], required=False, widget=forms.HiddenInput
    )
    database = forms.ChoiceField(required=False)
    namespace = forms.CharField(max_length=253, required=False)
    service_account = forms.CharField(max_length=253, required=False, label="Service account")

    def __init__(self, *args: Any, databases: list[tuple[str, str]], now: datetime, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.now = now
        # a word that Python keeps for itself
        self.fields["from"] = _moment("From (UTC)")
        self.fields["to"] = _moment("To (UTC)")
        self.fields["database"] = forms.ChoiceField(
            choices=[("", "any"), *databases, ("unknown", "not known")],
            required=False,
            error_messages={"invalid_choice": "No such database is watched. Choose one of the list."},
        )
        self.order_fields(["period", "from", "to", "database", "namespace", "service_account"])

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        begin, end = cleaned.get("from"), cleaned.get("to")
        for name, moment in (("from", begin), ("to", end)):
            if moment and moment < OLDEST:
                self.add_error(name, "No audit log can be of that time.")
        if begin and begin > self.now:
            self.add_error("from", "This is still to come. Choose a moment up to now; it is UTC.")
        elif begin and end and end <= begin:
            self.add_error("to", "The period ends before it begins. Choose a later end.")
        return cleaned

    @property
    def narrowed(self) -> bool:
        """Whether anything but the default is asked for."""
        return any(value for name, value in self.data.items() if name in self.fields and value != USUAL_PERIOD)

    def span(self) -> Span:
        """Needs a valid form. An end that is still to come is none; without a beginning the period reaches back from its end."""
        begin, end = self.cleaned_data["from"], self.cleaned_data["to"]
        if end and end > self.now:
            end = None
        hours = PERIODS[self.cleaned_data["period"] or USUAL_PERIOD][1]
        return Span(begin or (end or self.now) - timedelta(hours=hours), end)

    def where(self) -> UseFilter:
        """Needs a valid form."""
        cleaned = self.cleaned_data
        database = cleaned["database"]
        return UseFilter(
            int(database) if database.isdigit() else database or None,
            cleaned["namespace"].strip(),
            cleaned["service_account"].strip(),
        )


class RevokeForm(forms.Form):
    """Why, and the ticket; with `leases` that many have to be typed."""

    reason = forms.CharField(
        max_length=500,
        widget=forms.Textarea(attrs={"rows": 2, "autocomplete": "off"}),
        validators=[no_secret],
        error_messages={"required": "Write why. The reason stays with the action for good."},
    )
    ticket = forms.CharField(
        max_length=100,
        required=False,
        label="Ticket",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
        validators=[no_secret],
    )

    def __init__(self, *args: Any, leases: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.leases = leases
        if leases is not None:
            self.fields["typed"] = forms.CharField(
                max_length=20,
                label=f"Type {leases} to confirm",
                widget=forms.TextInput(attrs={"autocomplete": "off", "inputmode": "numeric"}),
                error_messages={"required": f"Type {leases}: so many leases end."},
            )

    def clean_typed(self) -> str:
        typed: str = self.cleaned_data["typed"]
        if typed.replace(",", "").strip() != str(self.leases):
            raise forms.ValidationError(f"{self.leases} leases end: type {self.leases}.")
        return typed

    @property
    def why(self) -> str:
        """Needs a valid form."""
        return str(self.cleaned_data["reason"]).strip()

    @property
    def ticket_number(self) -> str:
        """Needs a valid form."""
        return str(self.cleaned_data["ticket"]).strip()


# what can be written into the form; leases themselves are selected on their list
SCOPES = [(kind, str(kind)) for kind in ScopeKind if kind != ScopeKind.LEASES]
PLANNED = [ActionKind.REVOKE, ActionKind.CONTAIN, ActionKind.FORCE]


class PlanForm(forms.Form):
    """What a person wants to end, before anything is shown or done. `lease` comes once for each that was selected."""

    kind = forms.ChoiceField(choices=[(kind, str(kind)) for kind in PLANNED], widget=forms.HiddenInput)
    scope_kind = forms.ChoiceField(choices=[(kind, str(kind)) for kind in ScopeKind], label="Everything of")
    scope_value = forms.CharField(
        max_length=8000,
        required=False,
        label="Which",
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
        validators=[no_secret],
    )

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        kind, value = cleaned.get("scope_kind"), cleaned.get("scope_value", "").strip()
        if kind == ScopeKind.LEASES and hasattr(self.data, "getlist"):
            value = value or ",".join(self.data.getlist("lease"))
            if not value:
                raise forms.ValidationError("No lease was selected. Tick those that are to end on the list of leases.")
        if kind:
            try:
                cleaned["scope"] = Scope.parse(kind, value)
            except UnknownScope as error:
                self.add_error("scope_value", str(error))
        return cleaned


class ActionFilterForm(forms.Form):
    kind = forms.ChoiceField(
        choices=[("", "any"), *((kind, kind) for kind in (*ActionKind.values, "close finding", "report"))],
        required=False,
    )
    by = forms.CharField(max_length=150, required=False, label="Person")
    state = forms.ChoiceField(
        choices=[
            ("", "any"),
            *((state, state) for state in JobState.values),
            (NOT_VERIFIED, "with a lease not verified"),
        ],
        required=False,
    )

    def where(self) -> ActionFilter:
        """The filter; needs a valid form."""
        return ActionFilter(**{name: value.strip() for name, value in self.cleaned_data.items()})

    @property
    def narrowed(self) -> bool:
        """Whether anything is asked for."""
        return any(value for name, value in self.data.items() if name in self.fields)


class RefuseForm(forms.Form):
    reason = forms.CharField(
        max_length=500,
        validators=[no_secret],
        error_messages={"required": "Write why it is not to be done. The one who asked for it reads this."},
    )


class FindingFilterForm(forms.Form):
    state = forms.ChoiceField(choices=[("open", "open"), ("closed", "closed"), ("any", "any")], required=False)
    severity = forms.TypedChoiceField(
        choices=[("", "any"), *((value, label) for value, label in reversed(Severity.choices))],
        coerce=int,
        empty_value=None,
        required=False,
    )
    kind = forms.ChoiceField(choices=[("", "any"), *((kind, kind) for kind in FindingKind.values)], required=False)
    vault = forms.ChoiceField(required=False)

    def __init__(self, *args: Any, vaults: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["vault"] = forms.ChoiceField(
            choices=[("", "any"), *((name, name) for name in vaults)], required=False
        )

    def where(self) -> FindingFilter:
        """The filter; needs a valid form."""
        cleaned = dict(self.cleaned_data)
        state = cleaned.pop("state") or "open"
        return FindingFilter(state="" if state == "any" else state, **cleaned)

    @property
    def narrowed(self) -> bool:
        """Whether anything but the default is asked for."""
        return any(value for name, value in self.data.items() if name in self.fields and value != "open")


class CloseForm(forms.Form):
    reason = forms.CharField(
        max_length=500,
        widget=forms.Textarea(attrs={"rows": 2, "autocomplete": "off"}),
        validators=[no_secret],
        error_messages={
            "required": "Write why nothing more is to be done. The reason stays with the finding for good."
        },
    )


class LogInForm(forms.Form):
    username = forms.CharField(
        max_length=150,
        label="User name",
        widget=forms.TextInput(attrs={"autocomplete": "username", "autocapitalize": "none", "autofocus": True}),
    )
    password = forms.CharField(
        max_length=1000, strip=False, widget=forms.PasswordInput(attrs={"autocomplete": "current-password"})
    )
