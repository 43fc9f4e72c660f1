"""Log in and log out."""

from typing import Any

from django.conf import settings
from django.contrib.auth import authenticate, login, logout
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render, resolve_url
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_POST
from django_htmx.http import HttpResponseClientRefresh

from dashboard import throttle
from dashboard.forms import LogInForm


@login_not_required
@never_cache
@sensitive_post_parameters("password")
def log_in(request: Any) -> HttpResponse:
    if request.htmx:
        # a live part of a page whose session ended: the whole page has to ask for the log-in
        return HttpResponseClientRefresh()
    if request.user.is_authenticated:
        return redirect(_after(request))
    form = LogInForm(request.POST or None)
    if request.method != "POST" or not form.is_valid():
        return render(request, "login.html", {"form": form, "next": request.GET.get("next", "")})
    now, username = timezone.now(), form.cleaned_data["username"]
    who = throttle.who(username, throttle.address(request))
    if seconds := throttle.seconds_to_wait(who, now=now):
        form.add_error(None, f"Too many wrong passwords. Try again in {seconds} s.")
    elif user := authenticate(request, username=username, password=form.cleaned_data["password"]):
        throttle.succeeded(who)
        login(request, user)
        return redirect(_after(request))
    else:
        throttle.failed(who, now=now)
        form.add_error(None, "User name and password do not match.")
    return render(request, "login.html", {"form": form, "next": request.POST.get("next", "")}, status=422)


@login_not_required
@require_POST
def log_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return redirect(settings.LOGOUT_REDIRECT_URL)


def _after(request: HttpRequest) -> str:
    wanted = request.POST.get("next") or request.GET.get("next") or ""
    here = url_has_allowed_host_and_scheme(wanted, {request.get_host()}, require_https=request.is_secure())
    return wanted if here else resolve_url(settings.LOGIN_REDIRECT_URL)
