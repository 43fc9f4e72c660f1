"""What people may send: the filters of a list, a reason, a log-in."""

from datetime import datetime, timedelta
from typing import Any

from django import forms

from audit.batch import OLDEST
from audit.findings.queries import FindingFilter
from audit.models import FindingKind, Severity
from leases.models import Certainty, LeaseState
from leases.models.sessions import Place
from leases.queries import LeaseFilter
from leases.session_queries import SessionFilter
from leases.usage import Span, UseFilter

STATES = [
    ("open", "not ended"),
    *((state, str(state)) for state in LeaseState.values),
    ("any", "any"),
]
REVIEW_DAYS = {"7": "7 days", "30": "30 days", "90": "90 days"}
USUAL_DAYS = "30"
PERIODS = {"1h": ("1 hour", 1), "24h": ("24 hours", 24), "7d": ("7 days", 7 * 24), "30d": ("30 days", 30 * 24)}
USUAL_PERIOD = "24h"


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
    reason = forms.CharField(
        max_length=500,
        widget=forms.Textarea(attrs={"rows": 2, "autocomplete": "off"}),
        error_messages={"required": "Write why. The reason stays with the action for good."},
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
