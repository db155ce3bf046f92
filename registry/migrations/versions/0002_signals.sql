-- What extensions measure (one row for each series, added to by every daemon), and the events that they publish (an outbox).

create table extension_measurement (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    install_id uuid not null,
    name text collate "C" not null check (name ~ '^[a-z][a-z0-9_]{0,63}$'),
    labels text collate "C" not null check (octet_length(labels) <= 2048),
    kind text not null check (kind in ('counter', 'gauge', 'histogram')),
    value double precision not null,
    buckets bigint[],
    observed_at timestamptz not null,
    primary key (tenant_id, install_id, name, labels),
    foreign key (tenant_id, install_id) references tenant_extension_install (tenant_id, id) on delete cascade,
    check ((kind = 'histogram') = (buckets is not null))
);

-- A CloudEvents 1.0 event each. `sequence` grows with each event of an install, in the order of their commits: what has a key is delivered in it.
create table extension_event (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    id uuid not null,
    install_id uuid not null,
    registry_id uuid not null references extension_registry (id),
    sequence bigint not null check (sequence > 0),
    source text not null check (source <> ''),
    topic text collate "C" not null check (char_length(topic) between 1 and 320),
    ordering_key text collate "C" check (char_length(ordering_key) between 1 and 128),
    content_type text not null check (char_length(content_type) between 1 and 256),
    data bytea not null check (octet_length(data) <= 1048576),
    depth smallint not null check (depth between 1 and 4),
    cause_id uuid,
    request_id text not null,
    published_at timestamptz not null default now(),
    dispatched_at timestamptz,
    primary key (tenant_id, id),
    unique (tenant_id, install_id, sequence),
    foreign key (tenant_id, install_id) references tenant_extension_install (tenant_id, id) on delete cascade
);
create index extension_event_waiting on extension_event (tenant_id, install_id, sequence) where dispatched_at is null;
create index extension_event_age on extension_event (published_at);

-- How much each install published; its row is locked by whoever publishes, so that the order and the bounds hold for a fleet of daemons.
create table extension_event_usage (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    install_id uuid not null,
    last_sequence bigint not null default 0,
    minute timestamptz not null default '-infinity',
    minute_events integer not null default 0,
    day timestamptz not null default '-infinity',
    day_events integer not null default 0,
    day_bytes bigint not null default 0,
    primary key (tenant_id, install_id),
    foreign key (tenant_id, install_id) references tenant_extension_install (tenant_id, id) on delete cascade
);

do $$
declare
    relation text;
begin
    foreach relation in array array['extension_measurement', 'extension_event', 'extension_event_usage'] loop
        execute format('alter table %I enable row level security, force row level security', relation);
        execute format(
            'create policy tenant_isolation on %I to ext_gateway, ext_runner, ext_admin '
            'using (tenant_id = (select nullif(current_setting(''app.tenant_id'', true), ''''))) '
            'with check (tenant_id = (select nullif(current_setting(''app.tenant_id'', true), '''')))', relation);
        execute format('create policy owner_all on %I to ext_owner using (true) with check (true)', relation);
    end loop;
end
$$;
create policy maintenance_all on extension_event to ext_maintenance using (true) with check (true);

-- The daemon adds to measurements and publishes events, and changes none; the tenant's administrators read, and forget measurements;
-- maintenance takes away events that are old enough, without their content.
grant select, insert, update on extension_measurement to ext_runner;
grant select, delete on extension_measurement to ext_admin;
grant insert on extension_event to ext_runner;
grant select (tenant_id, id, depth) on extension_event to ext_runner;
grant select, insert, update on extension_event_usage to ext_runner;
grant select (tenant_id, id, install_id, registry_id, sequence, source, topic, ordering_key, content_type, depth, cause_id, request_id,
              published_at, dispatched_at) on extension_event to ext_admin;
grant select on extension_event_usage to ext_admin;
grant select (tenant_id, id, published_at, dispatched_at), delete on extension_event to ext_maintenance;
