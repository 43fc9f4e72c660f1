import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
        ('leases', '0003_append_only'),
    ]

    operations = [
        migrations.CreateModel(
            name='AttributionChange',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('at', models.DateTimeField()),
                ('vault', models.TextField()),
                ('lease_id', models.TextField()),
                ('certainty_before', models.TextField(blank=True)),
                ('certainty', models.TextField()),
                ('reason', models.TextField()),
                ('cluster', models.TextField(blank=True)),
                ('pod_namespace', models.TextField(blank=True)),
                ('pod', models.TextField(blank=True)),
                ('pod_uid', models.TextField(blank=True)),
                ('service_account', models.TextField(blank=True)),
            ],
            options={
                'indexes': [models.Index(fields=['vault', 'lease_id', 'at'], name='attribution_of_lease')],
            },
        ),
        migrations.CreateModel(
            name='Device',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.TextField()),
                ('salt_epoch', models.PositiveIntegerField(default=1)),
                ('salt_probe', models.TextField(blank=True)),
                ('vault', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='devices', to='leases.vault')),
            ],
        ),
        migrations.CreateModel(
            name='Event',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('request_id', models.TextField()),
                ('at', models.DateTimeField()),
                ('request_at', models.DateTimeField(null=True)),
                ('response_at', models.DateTimeField(null=True)),
                ('operation', models.TextField(blank=True)),
                ('path', models.TextField(blank=True)),
                ('mount_point', models.TextField(blank=True)),
                ('mount_type', models.TextField(blank=True)),
                ('namespace_path', models.TextField(blank=True)),
                ('address', models.TextField(blank=True)),
                ('display_name', models.TextField(blank=True)),
                ('entity_id', models.TextField(blank=True)),
                ('token_type', models.TextField(blank=True)),
                ('policies', models.JSONField(default=list)),
                ('metadata', models.JSONField(default=dict)),
                ('lease_id', models.TextField(blank=True)),
                ('error', models.TextField(blank=True)),
                ('own', models.BooleanField(default=False)),
                ('vault', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to='leases.vault')),
            ],
        ),
        migrations.CreateModel(
            name='LoginKey',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('salt_epoch', models.PositiveIntegerField()),
                ('accessor', models.TextField()),
                ('device', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to='audit.device')),
                ('login', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='keys', to='leases.login')),
            ],
        ),
        migrations.CreateModel(
            name='Stream',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('node', models.TextField()),
                ('path', models.TextField(blank=True)),
                ('retired', models.BooleanField(default=False)),
                ('file_inode', models.TextField(blank=True)),
                ('file_start', models.TextField(blank=True)),
                ('offset', models.BigIntegerField(default=0)),
                ('sequence', models.BigIntegerField(default=0)),
                ('head', models.TextField(blank=True)),
                ('lines', models.BigIntegerField(default=0)),
                ('duplicates', models.BigIntegerField(default=0)),
                ('rejected', models.BigIntegerField(default=0)),
                ('redacted', models.BigIntegerField(default=0)),
                ('conflicts', models.BigIntegerField(default=0)),
                ('refused', models.TextField(blank=True)),
                ('last_line_at', models.DateTimeField(null=True)),
                ('read_at', models.DateTimeField(null=True)),
                ('unread_bytes', models.BigIntegerField(default=0)),
                ('device', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='streams', to='audit.device')),
            ],
        ),
        migrations.CreateModel(
            name='Sighting',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('salt_epoch', models.PositiveIntegerField()),
                ('request_block', models.BigIntegerField(null=True)),
                ('response_block', models.BigIntegerField(null=True)),
                ('accessor', models.TextField(blank=True)),
                ('new_accessor', models.TextField(blank=True)),
                ('username', models.TextField(blank=True)),
                ('data_lease_id', models.TextField(blank=True)),
                ('data_accessor', models.TextField(blank=True)),
                ('device', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to='audit.device')),
                ('event', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='sightings', to='audit.event')),
                ('stream', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to='audit.stream')),
            ],
        ),
        migrations.CreateModel(
            name='RejectedLine',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('block_sequence', models.BigIntegerField()),
                ('line_number', models.PositiveIntegerField()),
                ('reason', models.TextField()),
                ('at', models.DateTimeField()),
                ('stream', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='rejected_lines', to='audit.stream')),
            ],
        ),
        migrations.CreateModel(
            name='RawBlock',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('sequence', models.BigIntegerField()),
                ('offset_from', models.BigIntegerField()),
                ('offset_to', models.BigIntegerField()),
                ('lines', models.PositiveIntegerField()),
                ('previous', models.TextField(blank=True)),
                ('sha256', models.TextField()),
                ('at', models.DateTimeField()),
                ('data', models.BinaryField()),
                ('stream', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='blocks', to='audit.stream')),
            ],
        ),
        migrations.AddConstraint(
            model_name='device',
            constraint=models.UniqueConstraint(fields=('vault', 'name'), name='device_name_is_unique_in_its_vault'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(fields=['-at', '-id'], name='event_newest'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(condition=models.Q(('lease_id', ''), _negated=True), fields=['vault', 'lease_id'], name='event_by_lease'),
        ),
        migrations.AddConstraint(
            model_name='event',
            constraint=models.UniqueConstraint(fields=('vault', 'request_id'), name='event_is_one_request'),
        ),
        migrations.AddConstraint(
            model_name='event',
            constraint=models.CheckConstraint(condition=models.Q(('request_at__isnull', False), ('response_at__isnull', False), _connector='OR'), name='an_event_has_a_half'),
        ),
        migrations.AddConstraint(
            model_name='loginkey',
            constraint=models.UniqueConstraint(fields=('device', 'salt_epoch', 'accessor'), name='an_accessor_is_one_login'),
        ),
        migrations.AddConstraint(
            model_name='stream',
            constraint=models.UniqueConstraint(fields=('device', 'node'), name='stream_is_one_node_of_one_device'),
        ),
        migrations.AddIndex(
            model_name='sighting',
            index=models.Index(fields=['device', 'salt_epoch', 'accessor'], name='sighting_by_accessor'),
        ),
        migrations.AddIndex(
            model_name='sighting',
            index=models.Index(condition=models.Q(('username', ''), _negated=True), fields=['device', 'salt_epoch', 'username'], name='sighting_by_username'),
        ),
        migrations.AddIndex(
            model_name='sighting',
            index=models.Index(condition=models.Q(('data_lease_id', ''), _negated=True), fields=['device', 'salt_epoch', 'data_lease_id'], name='sighting_by_lease_hash'),
        ),
        migrations.AddConstraint(
            model_name='sighting',
            constraint=models.UniqueConstraint(fields=('event', 'stream'), name='a_stream_sees_an_event_once'),
        ),
        migrations.AddConstraint(
            model_name='rejectedline',
            constraint=models.UniqueConstraint(fields=('stream', 'block_sequence', 'line_number'), name='a_line_is_rejected_once'),
        ),
        migrations.AddConstraint(
            model_name='rawblock',
            constraint=models.UniqueConstraint(fields=('stream', 'sequence'), name='block_has_one_place_in_its_chain'),
        ),
        migrations.AddConstraint(
            model_name='rawblock',
            constraint=models.UniqueConstraint(fields=('stream', 'sha256'), name='block_stands_once_in_its_chain'),
        ),
    ]
