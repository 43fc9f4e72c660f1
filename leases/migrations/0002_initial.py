import django.db.models.deletion
import django.db.models.functions.comparison
import uuid
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
        ('leases', '0001_roles'),
    ]

    operations = [
        migrations.CreateModel(
            name='Cluster',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.TextField(unique=True)),
                ('address', models.TextField(blank=True)),
                ('ca_file', models.TextField(blank=True)),
                ('token', models.JSONField(null=True)),
                ('retired', models.BooleanField(default=False)),
                ('resource_version', models.TextField(blank=True)),
            ],
        ),
        migrations.CreateModel(
            name='Database',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('mount', models.TextField()),
                ('name', models.TextField()),
                ('kind', models.TextField(blank=True)),
                ('monitor', models.JSONField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name='Vault',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.TextField(unique=True)),
                ('address', models.TextField(blank=True)),
                ('namespace', models.TextField(blank=True)),
                ('ca_file', models.TextField(blank=True)),
                ('lease_mounts', models.JSONField(default=list)),
                ('reconcile_seconds', models.PositiveIntegerField(default=600)),
                ('observe', models.JSONField(null=True)),
                ('respond', models.JSONField(null=True)),
                ('retired', models.BooleanField(default=False)),
                ('reconciled_at', models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name='Action',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ('kind', models.TextField()),
                ('by', models.TextField()),
                ('reason', models.TextField()),
                ('at', models.DateTimeField()),
                ('targets', models.JSONField(default=list)),
            ],
            options={
                'indexes': [models.Index(fields=['-at', '-id'], name='action_newest')],
                'constraints': [models.CheckConstraint(condition=models.Q(('reason', ''), _negated=True), name='an_action_has_a_reason')],
            },
        ),
        migrations.CreateModel(
            name='AuthMount',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('path', models.TextField()),
                ('claims', models.JSONField(default=dict)),
                ('cluster', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='auth_mounts', to='leases.cluster')),
                ('vault', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='auth_mounts', to='leases.vault')),
            ],
        ),
        migrations.CreateModel(
            name='Login',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('request_id', models.TextField()),
                ('logged_in_at', models.DateTimeField()),
                ('mount_path', models.TextField()),
                ('address', models.TextField(blank=True)),
                ('display_name', models.TextField(blank=True)),
                ('entity_id', models.TextField(blank=True)),
                ('policies', models.JSONField(default=list)),
                ('token_type', models.TextField(blank=True)),
                ('metadata', models.JSONField(default=dict)),
                ('service_account_namespace', models.TextField(blank=True)),
                ('service_account', models.TextField(blank=True)),
                ('own', models.BooleanField(default=False)),
                ('claimed_pod', models.TextField(blank=True)),
                ('claimed_pod_uid', models.TextField(blank=True)),
                ('claimed_node', models.TextField(blank=True)),
                ('ended_at', models.DateTimeField(null=True)),
                ('end_reason', models.TextField(blank=True)),
                ('auth_mount', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, to='leases.authmount')),
                ('vault', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='logins', to='leases.vault')),
            ],
        ),
        migrations.CreateModel(
            name='Lease',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('lease_id', models.TextField()),
                ('vault_namespace', models.TextField(blank=True)),
                ('mount', models.TextField()),
                ('role', models.TextField(blank=True)),
                ('database_user', models.TextField(blank=True)),
                ('state', models.TextField(choices=[('live', 'Live'), ('revoking', 'Revoking'), ('irrevocable', 'Irrevocable'), ('ended', 'Ended')], default='live')),
                ('issued_at', models.DateTimeField(null=True)),
                ('expires_at', models.DateTimeField(null=True)),
                ('last_renewal_at', models.DateTimeField(null=True)),
                ('renewals', models.PositiveIntegerField(default=0)),
                ('renewable', models.BooleanField(default=False)),
                ('revoke_error', models.TextField(blank=True)),
                ('ended_at', models.DateTimeField(null=True)),
                ('end_reason', models.TextField(blank=True, choices=[('revoked here', 'Revoked Here'), ('revoked in Vault', 'Revoked In Vault'), ('by prefix', 'By Prefix'), ('forced (database user may live)', 'Forced'), ('token revoked', 'Token Revoked'), ('expired (inferred)', 'Expired'), ('gone, cause unknown', 'Unknown')])),
                ('end_evidence', models.TextField(blank=True)),
                ('end_seen_at', models.DateTimeField(null=True)),
                ('end_seen_reason', models.TextField(blank=True, choices=[('revoked here', 'Revoked Here'), ('revoked in Vault', 'Revoked In Vault'), ('by prefix', 'By Prefix'), ('forced (database user may live)', 'Forced'), ('token revoked', 'Token Revoked'), ('expired (inferred)', 'Expired'), ('gone, cause unknown', 'Unknown')])),
                ('end_seen_evidence', models.TextField(blank=True)),
                ('request_id', models.TextField(blank=True)),
                ('accessed_at', models.DateTimeField(null=True)),
                ('source_ip', models.TextField(blank=True)),
                ('certainty', models.TextField(choices=[('exact', 'Exact'), ('inferred', 'Inferred'), ('ambiguous', 'Ambiguous'), ('service account', 'Service Account'), ('unknown', 'Unknown')], default='unknown')),
                ('certainty_reason', models.TextField(blank=True)),
                ('cluster', models.TextField(blank=True)),
                ('service_account_namespace', models.TextField(blank=True)),
                ('service_account', models.TextField(blank=True)),
                ('pod_namespace', models.TextField(blank=True)),
                ('pod', models.TextField(blank=True)),
                ('pod_uid', models.TextField(blank=True)),
                ('attribution_open', models.BooleanField(default=True)),
                ('looked_up_at', models.DateTimeField(null=True)),
                ('lookup_due_at', models.DateTimeField(null=True)),
                ('first_seen_at', models.DateTimeField()),
                ('updated_at', models.DateTimeField()),
                ('database', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='leases', to='leases.database')),
                ('login', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='leases', to='leases.login')),
                ('vault', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='leases', to='leases.vault')),
            ],
        ),
        migrations.CreateModel(
            name='Pod',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('uid', models.TextField()),
                ('namespace', models.TextField()),
                ('name', models.TextField()),
                ('service_account', models.TextField()),
                ('node', models.TextField(blank=True)),
                ('host_network', models.BooleanField(default=False)),
                ('phase', models.TextField(blank=True)),
                ('owner_kind', models.TextField(blank=True)),
                ('owner_name', models.TextField(blank=True)),
                ('annotations', models.JSONField(default=dict)),
                ('started_at', models.DateTimeField()),
                ('ended_at', models.DateTimeField(null=True)),
                ('cluster', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='pods', to='leases.cluster')),
            ],
        ),
        migrations.CreateModel(
            name='PodAddress',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('address', models.GenericIPAddressField()),
                ('from_at', models.DateTimeField()),
                ('to_at', models.DateTimeField(null=True)),
                ('pod', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='addresses', to='leases.pod')),
            ],
        ),
        migrations.CreateModel(
            name='Policy',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('clock_skew_seconds', models.FloatField(default=2.0)),
                ('stale_after_seconds', models.FloatField(default=15.0)),
            ],
            options={
                'constraints': [models.CheckConstraint(condition=models.Q(('pk', 1)), name='there_is_one_policy')],
            },
        ),
        migrations.CreateModel(
            name='Revocation',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('state', models.TextField(choices=[('requested', 'Requested'), ('revoking', 'Revoking'), ('verifying', 'Verifying'), ('verified', 'Verified'), ('unverified', 'Unverified'), ('failed', 'Failed')], default='requested')),
                ('claimed_until', models.DateTimeField(null=True)),
                ('audit_request_id', models.TextField(blank=True)),
                ('requested_at', models.DateTimeField()),
                ('updated_at', models.DateTimeField()),
                ('action', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='revocations', to='leases.action')),
                ('lease', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='revocations', to='leases.lease')),
            ],
        ),
        migrations.CreateModel(
            name='SourceState',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.TextField(choices=[('vault', 'Vault'), ('cluster', 'Cluster'), ('database', 'Database'), ('stream', 'Stream')])),
                ('name', models.TextField()),
                ('ok', models.BooleanField()),
                ('cause', models.TextField(blank=True)),
                ('fix', models.TextField(blank=True)),
                ('checked_at', models.DateTimeField()),
                ('since', models.DateTimeField()),
                ('failures', models.PositiveIntegerField(default=0)),
                ('retry_at', models.DateTimeField()),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('kind', 'name'), name='one_state_per_source'), models.CheckConstraint(condition=models.Q(('ok', True), models.Q(('cause', ''), _negated=True), _connector='OR'), name='a_failing_source_names_its_cause')],
            },
        ),
        migrations.CreateModel(
            name='DatabaseRole',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('mount', models.TextField()),
                ('name', models.TextField()),
                ('database', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='roles', to='leases.database')),
                ('vault', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to='leases.vault')),
            ],
        ),
        migrations.AddField(
            model_name='database',
            name='vault',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='databases', to='leases.vault'),
        ),
        migrations.CreateModel(
            name='WatchPeriod',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('from_at', models.DateTimeField()),
                ('to_at', models.DateTimeField()),
                ('cluster', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='watch_periods', to='leases.cluster')),
            ],
        ),
        migrations.CreateModel(
            name='ActionStep',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('lease_id', models.TextField(blank=True)),
                ('name', models.TextField()),
                ('outcome', models.TextField(choices=[('ok', 'Ok'), ('failed', 'Failed'), ('unverified', 'Unverified')])),
                ('detail', models.TextField(blank=True)),
                ('at', models.DateTimeField()),
                ('action', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='steps', to='leases.action')),
            ],
            options={
                'indexes': [models.Index(fields=['action', 'at', 'id'], name='action_step_in_order')],
            },
        ),
        migrations.AddConstraint(
            model_name='pod',
            constraint=models.UniqueConstraint(fields=('cluster', 'uid'), name='pod_uid_is_unique_in_its_cluster'),
        ),
        migrations.AddIndex(
            model_name='podaddress',
            index=models.Index(fields=['address', 'from_at'], name='pod_address_by_address'),
        ),
        migrations.AddConstraint(
            model_name='podaddress',
            constraint=models.UniqueConstraint(fields=('pod', 'address', 'from_at'), name='pod_address_starts_once'),
        ),
        migrations.AddConstraint(
            model_name='podaddress',
            constraint=models.CheckConstraint(condition=models.Q(('to_at', None), ('to_at__gte', models.F('from_at')), _connector='OR'), name='pod_address_ends_after_its_start'),
        ),
        migrations.AddIndex(
            model_name='revocation',
            index=models.Index(condition=models.Q(('state__in', ['requested', 'revoking', 'verifying'])), fields=['claimed_until'], name='revocation_open'),
        ),
        migrations.AddConstraint(
            model_name='revocation',
            constraint=models.UniqueConstraint(condition=models.Q(('state__in', ['requested', 'revoking', 'verifying'])), fields=('lease',), name='one_open_revocation_per_lease'),
        ),
        migrations.AddConstraint(
            model_name='login',
            constraint=models.UniqueConstraint(fields=('vault', 'request_id'), name='login_is_one_request'),
        ),
        migrations.AddIndex(
            model_name='lease',
            index=models.Index(condition=models.Q(('state', 'ended'), _negated=True), fields=['expires_at', 'id'], name='lease_live'),
        ),
        migrations.AddIndex(
            model_name='lease',
            index=models.Index(fields=['updated_at'], name='lease_updated'),
        ),
        migrations.AddIndex(
            model_name='lease',
            index=models.Index(models.OrderBy(django.db.models.functions.comparison.Coalesce('accessed_at', 'first_seen_at'), descending=True), models.OrderBy(models.F('id'), descending=True), name='lease_newest'),
        ),
        migrations.AddIndex(
            model_name='lease',
            index=models.Index(condition=models.Q(('state', 'ended')), fields=['-ended_at', '-id'], name='lease_ended_newest'),
        ),
        migrations.AddIndex(
            model_name='lease',
            index=models.Index(condition=models.Q(('request_id', ''), _negated=True), fields=['accessed_at', 'id'], name='lease_accessed'),
        ),
        migrations.AddIndex(
            model_name='lease',
            index=models.Index(condition=models.Q(models.Q(('state', 'ended'), _negated=True), models.Q(('lookup_due_at', None), _negated=True)), fields=['vault', 'lookup_due_at'], name='lease_due'),
        ),
        migrations.AddIndex(
            model_name='lease',
            index=models.Index(condition=models.Q(('attribution_open', True)), fields=['id'], name='lease_unattributed'),
        ),
        migrations.AddIndex(
            model_name='lease',
            index=models.Index(fields=['vault', 'request_id'], name='lease_by_request'),
        ),
        migrations.AddConstraint(
            model_name='lease',
            constraint=models.UniqueConstraint(fields=('vault', 'lease_id'), name='lease_id_is_unique_in_its_vault'),
        ),
        migrations.AddConstraint(
            model_name='lease',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('ended_at__isnull', False), ('state', 'ended'), models.Q(('end_reason', ''), _negated=True)), models.Q(models.Q(('state', 'ended'), _negated=True), ('end_reason', ''), ('ended_at', None)), _connector='OR'), name='an_ended_lease_has_an_end_and_a_reason'),
        ),
        migrations.AddConstraint(
            model_name='lease',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('certainty__in', ['exact', 'inferred']), models.Q(('pod_uid', ''), _negated=True)), models.Q(models.Q(('certainty__in', ['exact', 'inferred']), _negated=True), ('pod', ''), ('pod_uid', '')), _connector='OR'), name='a_pod_is_named_only_with_certainty'),
        ),
        migrations.AddConstraint(
            model_name='databaserole',
            constraint=models.UniqueConstraint(fields=('vault', 'mount', 'name'), name='role_opens_one_database'),
        ),
        migrations.AddConstraint(
            model_name='database',
            constraint=models.UniqueConstraint(fields=('vault', 'mount', 'name'), name='database_is_one_connection'),
        ),
        migrations.AddConstraint(
            model_name='authmount',
            constraint=models.UniqueConstraint(fields=('vault', 'path'), name='auth_mount_belongs_to_one_cluster'),
        ),
        migrations.AddIndex(
            model_name='watchperiod',
            index=models.Index(fields=['cluster', 'to_at'], name='watch_period_by_end'),
        ),
        migrations.AddConstraint(
            model_name='watchperiod',
            constraint=models.CheckConstraint(condition=models.Q(('to_at__gte', models.F('from_at'))), name='watch_period_ends_after_its_start'),
        ),
    ]
