-- The first tables. PostgreSQL 15 SQL only; identifiers are made by the product; no extension of the server is used.
-- Text that is compared, sorted or paged has collation "C", so that order does not depend on the server's locale.

-- Global tables: what exists, who published it, what is revoked. ------------------------------------------------------------

create table extension_publisher (
    id uuid primary key,
    name text collate "C" not null unique check (name <> ''),
    created_by text not null,
    created_at timestamptz not null default now(),
    unique (id, name)
);

create table extension_publisher_identity (
    id uuid primary key,
    publisher_id uuid not null references extension_publisher (id),
    trust_domain text collate "C" not null check (trust_domain <> ''),
    issuer text collate "C" not null check (issuer <> ''),
    identity text collate "C" not null check (identity <> ''),
    created_by text not null,
    created_at timestamptz not null default now(),
    unique (publisher_id, trust_domain, issuer, identity)
);

create table extension_registry (
    id uuid primary key,
    publisher_id uuid not null,
    publisher text collate "C" not null,
    name text collate "C" not null unique check (name <> ''),
    display_name text,
    description text,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (publisher, name),
    foreign key (publisher_id, publisher) references extension_publisher (id, name)
);

create table extension_version (
    id uuid primary key,
    registry_id uuid not null references extension_registry (id),
    version text collate "C" not null,
    version_order text collate "C" not null,
    is_prerelease boolean not null,
    state text not null default 'pending' check (state in ('pending', 'published')),
    runtime text not null,
    main_entry text not null,
    api jsonb not null default '{}',
    api_endpoints jsonb not null default '[]' check (jsonb_typeof(api_endpoints) = 'array'),
    ui jsonb,
    capabilities jsonb not null default '[]' check (jsonb_typeof(capabilities) = 'array'),
    manifest jsonb not null check (jsonb_typeof(manifest) = 'object'),
    manifest_digest text not null check (manifest_digest ~ '^sha256:[0-9a-f]{64}$'),
    sbom_ref text,
    created_at timestamptz not null default now(),
    published_at timestamptz,
    yanked_at timestamptz,
    yanked_reason text,
    deprecated_at timestamptz,
    unique (registry_id, version),
    unique (registry_id, id),
    check ((state = 'published') = (published_at is not null))
);
create index extension_version_order on extension_version (registry_id, version_order) where state = 'published';

create table extension_bundle (
    id uuid primary key,
    version_id uuid not null unique references extension_version (id) on delete cascade,
    content_hash text collate "C" not null unique check (content_hash ~ '^sha256:[0-9a-f]{64}$'),
    signature text not null,
    precompiled jsonb,
    storage_url text not null,
    size_bytes bigint not null check (size_bytes > 0),
    trust_domain text not null check (trust_domain <> ''),
    signer_issuer text not null check (signer_issuer <> ''),
    signer_identity text not null check (signer_identity <> ''),
    verified_at timestamptz not null,
    created_at timestamptz not null default now(),
    unique (version_id, content_hash)
);

create table extension_denylist (
    content_hash text collate "C" primary key check (content_hash ~ '^sha256:[0-9a-f]{64}$'),
    reason text not null check (reason <> ''),
    created_by text not null,
    created_at timestamptz not null default now()
);

-- Tables of tenants: every primary, unique and foreign key between them begins with tenant_id. -------------------------------

create table tenant_extension_install (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    id uuid not null,
    registry_id uuid not null references extension_registry (id),
    version_id uuid not null,
    granted_caps jsonb not null default '[]' check (jsonb_typeof(granted_caps) = 'array'),
    config jsonb not null default '{}',
    limits jsonb not null default '{}' check (jsonb_typeof(limits) = 'object'),
    endpoint_policy text not null default 'advisory' check (endpoint_policy in ('advisory', 'enforce')),
    is_enabled boolean not null default true,
    status text not null default 'enabled' check (status in ('enabled', 'disabled', 'pending', 'uninstalled')),
    consented_digest text not null,
    granted_by text not null,
    granted_at timestamptz not null default now(),
    runner_domain text,
    runner_status jsonb not null default '{"state": "pending"}',
    runner_ref jsonb,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant_id, id),
    unique (tenant_id, registry_id),
    unique (tenant_id, runner_domain),
    foreign key (registry_id, version_id) references extension_version (registry_id, id),
    check (is_enabled = (status = 'enabled'))
);
create index tenant_extension_install_version on tenant_extension_install (version_id) where is_enabled;

create table tenant_extension_install_config (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    install_id uuid not null,
    config jsonb not null default '{}' check (jsonb_typeof(config) = 'object'),
    providers jsonb not null default '[]',
    version uuid not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant_id, install_id),
    foreign key (tenant_id, install_id) references tenant_extension_install (tenant_id, id) on delete cascade
);

create table extension_event_subscription (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    id uuid not null,
    install_id uuid not null,
    topic text collate "C" not null check (topic <> ''),
    handler text not null,
    filter jsonb,
    created_at timestamptz not null default now(),
    primary key (tenant_id, id),
    unique (tenant_id, install_id, topic, handler),
    foreign key (tenant_id, install_id) references tenant_extension_install (tenant_id, id) on delete cascade
);
create index extension_event_subscription_topic on extension_event_subscription (tenant_id, topic);

-- No reference to the install: the record of what ran outlives it.
create table extension_execution_log (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    started_at timestamptz not null,
    id uuid not null,
    install_id uuid not null,
    registry_id uuid not null,
    version_id uuid not null,
    content_hash text not null,
    request_id text not null,
    trigger text not null,
    method text not null,
    endpoint text not null,
    user_id text,
    finished_at timestamptz,
    status text not null check (status in ('completed', 'trapped', 'limit_exceeded', 'guest_error', 'error')),
    error text,
    http_status integer,
    metrics jsonb not null,
    denials jsonb not null default '[]',
    log jsonb not null default '[]',
    primary key (tenant_id, started_at, id)
) partition by range (started_at);
create index extension_execution_log_registry on extension_execution_log (tenant_id, registry_id, started_at);

-- What arrives before its month has a partition is kept here, and moved when the partition is made: no row is ever refused for its date.
create table extension_execution_log_default partition of extension_execution_log default;

create table extension_quota_usage (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    registry_id uuid not null,
    window_start timestamptz not null,
    cpu_ms bigint not null default 0,
    mem_mb_ms bigint not null default 0,
    invocations bigint not null default 0,
    egress_bytes bigint not null default 0,
    primary key (tenant_id, registry_id, window_start)
);

create table ext_storage_record (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    install_id uuid not null,
    namespace text collate "C" not null check (char_length(namespace) between 1 and 128),
    key text collate "C" not null check (char_length(key) between 1 and 256),
    revision bigint not null default 1 check (revision > 0),
    value bytea not null,
    metadata jsonb not null default '{}',
    value_size_bytes integer not null,
    metadata_size_bytes integer not null default 0,
    ttl_expires_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant_id, install_id, namespace, key),
    foreign key (tenant_id, install_id) references tenant_extension_install (tenant_id, id) on delete cascade,
    check (value_size_bytes = octet_length(value))
);
create index ext_storage_record_ttl on ext_storage_record (ttl_expires_at) where ttl_expires_at is not null;

create table ext_storage_usage (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    install_id uuid not null,
    bytes_used bigint not null default 0 check (bytes_used >= 0),
    keys_count integer not null default 0 check (keys_count >= 0),
    namespaces_count integer not null default 0 check (namespaces_count >= 0),
    namespace_keys jsonb not null default '{}' check (jsonb_typeof(namespace_keys) = 'object'),
    primary key (tenant_id, install_id),
    foreign key (tenant_id, install_id) references tenant_extension_install (tenant_id, id) on delete cascade
);

-- What the platform does has tenant_id '*', which is no tenant's id; the policies say who may write which.
create table extension_audit_log (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    id uuid not null,
    actor text not null check (actor <> ''),
    action text not null check (action <> ''),
    subject text not null,
    detail jsonb not null default '{}',
    created_at timestamptz not null default now(),
    primary key (tenant_id, id)
);
create index extension_audit_log_time on extension_audit_log (tenant_id, created_at);
