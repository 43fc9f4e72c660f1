"""Findings about contained service accounts that are back."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("audit", "0014_notices"),
    ]

    operations = [
        migrations.AlterField(
            model_name="finding",
            name="kind",
            field=models.TextField(
                choices=[
                    ("lease explosion", "Explosion"),
                    ("lease outlives its pod", "Outlives Pod"),
                    ("holder unknown", "Holder Unknown"),
                    ("TTL over policy", "Over Ttl"),
                    ("irrevocable lease", "Irrevocable"),
                    ("issued twice at start", "Issued Twice"),
                    ("root token used", "Root Token"),
                    ("static database role read", "Static Role"),
                    ("repeated denials", "Denials"),
                    ("entity disabled or re-enabled", "Entity Changed"),
                    ("audit device disabled", "Device Disabled"),
                    ("audit device enabled anew", "Device Anew"),
                    ("audit device logs raw secrets", "Raw Device"),
                    ("audit lines missing", "Gap"),
                    ("stream behind", "Lag"),
                    ("pod watch gap", "Watch Gap"),
                    ("contradicting lines", "Conflict"),
                    ("revocation failed", "Revocation Failed"),
                    ("credential used from elsewhere", "Elsewhere"),
                    ("login from elsewhere", "Login Elsewhere"),
                    ("database user without a lease", "Ghost User"),
                    ("lease without a database user", "No User"),
                    ("session outlives its user", "User Vanished"),
                    ("back in spite of containment", "Back"),
                ]
            ),
        ),
    ]
