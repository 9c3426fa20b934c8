// Package waypoint derives, for one waypoint, the Envoy resources that make it route and protect the services and
// workloads bound to it. It is a decider: rows in, protobuf messages and findings out; no I/O, no lock, no clock.
//
// # What a waypoint is sent
//
// All references between resources use `ads {}` with resource_api_version V3 and initial_fetch_timeout 0. Only
// extensions of a stock Envoy appear. Names:
//
//	LDS  connect_terminate, main_internal, connect_originate        (wildcard subscription)
//	CDS  main_internal, encap, connect_originate, and one per service port and subset (wildcard)
//	EDS  one per service cluster; same name as the cluster
//	RDS  one per HTTP chain of main_internal; same name as the chain
//	SDS  default (key and chain), ROOTCA (roots)                     (made by the certificate authority, not here);
//	     kubernetes://NAME, kubernetes://NAME-cacert, configmap://NS/NAME-cacert: credentials of DestinationRules
//
// # Listeners
//
// connect_terminate: 0.0.0.0 (additional address [::]) port 15008, one chain with a DownstreamTlsContext (client
// certificate required, URI SAN prefix spiffe://<trust domain>/, TLS 1.3, ALPN h2). Its HTTP connection manager has an
// inline route config: CONNECT (connect_matcher) to cluster main_internal, upgrade CONNECT. HTTP filters:
// set_filter_state (connect_authority), router. The filter states, all shared with upstream ONCE, are
//
//	envoy.filters.listener.original_dst.local_ip   %REQ(:AUTHORITY)%
//	envoy.filters.listener.original_dst.remote_ip  %DOWNSTREAM_REMOTE_ADDRESS%
//	io.istio.connect_authority                     %REQ(:AUTHORITY)%           factory envoy.string
//	io.istio.peer_principal                        %DOWNSTREAM_PEER_URI_SAN%   factory envoy.string
//	io.istio.local_principal                       %DOWNSTREAM_LOCAL_URI_SAN%  factory envoy.string
//
// main_internal: internal listener; listener filters original_dst and, when some chain must be chosen by looking at the
// bytes, http_inspector (disabled by destination port ranges where the protocol is declared). filter_chain_matcher is an
// xds.type.matcher.v3.Matcher:
//
//	matcher_tree{ input destination_ip (DestinationIPInput)
//	  custom_match "ip" = xds.type.matcher.v3.IPMatcher{ range_matchers[]:
//	     { ranges: a service's VIPs, on_match: matcher_tree{ input port (DestinationPortInput)
//	           exact_match_map["<service port>"] = action StringValue "<chain>"
//	                                              | matcher_tree{ input ApplicationProtocolInput
//	                                                     exact_match_map["'h2c'" | "'http/1.1'" | "'http/1.0'"] = http chain
//	                                                     on_no_match tcp chain } } }
//	     { ranges: every attached workload's addresses, on_match: the same ALPN tree: direct-http, direct-tcp } } }
//
// There is no on_no_match at the outer level: what is not listed is refused.
// Chain names are `inbound-vip|<service port>|http|<host>`, `inbound-vip|<service port>|tcp|<host>`, `direct-http`,
// `direct-tcp`. An HTTP chain holds one HTTP connection manager with rds{route_config_name = chain name}, access_log,
// websocket upgrade, and the filters, by name:
//
//	marrow.xfcc_client_identity                              only where the Gateway asks for it (TestClientIdentity)
//	marrow.ext_authz.rbac.<provider>, marrow.ext_authz.<provider>   for each provider of a CUSTOM policy, by name
//	envoy.filters.http.jwt_authn                             only where a RequestAuthentication applies
//	marrow.rbac.audit, marrow.rbac.deny, marrow.rbac.allow   type envoy.extensions.filters.http.rbac.v3.RBAC
//	marrow.ratelimit.quotas                                   SetMetadata: the limits of global rules, where there are any
//	marrow.ratelimit.local[.observe][.<hash>]                 LocalRateLimit without limits: they are in the virtual host
//	marrow.ratelimit.global[.observe].<hash>                  RateLimit: which service, how long, and what if it fails
//	envoy.filters.http.grpc_stats
//	envoy.filters.http.fault                                 empty: faults are in the route's typed_per_filter_config
//	envoy.filters.http.cors                                  empty: the policy is in the route
//	envoy.filters.http.router
//
// The RBAC filters in the listener refuse everything. What they really enforce stands in the *virtual host's*
// typed_per_filter_config under the filter's name, as envoy.extensions.filters.http.rbac.v3.RBACPerRoute{rbac: RBAC}; an
// RBACPerRoute without rbac means that no policy of the kind applies. A policy change therefore rewrites one route
// configuration, reaches open connections with their next request, and drains nothing.
// RBAC.rules is enforced, RBAC.shadow_rules (dry-run) is only reported. Rules' action is LOG for audit, DENY, ALLOW; a
// request that matches no ALLOW policy is refused. Principals use filter_state{io.istio.peer_principal, string_match},
// sourced_metadata, direct_remote_ip, remote_ip, not_id, and_ids, or_ids, any; permissions use header (":authority", ":method", any
// header), url_path, uri_template (envoy.path.match.uri_template.uri_template_matcher), destination_port,
// destination_ip, not_rule, and_rules, or_rules, any. Policy names are
// `ns[<ns>]-policy[<name>]-rule[<index>]`.
//
// A CUSTOM policy's rules are shadow_rules (action DENY) of the provider's RBAC filter, in the virtual host like the others;
// what they find is left under istio_ext_authz_<provider>_shadow_effective_policy_id, and the ext_authz filter behind is
// enabled by that. Its server is reached by a cluster of its own, `ext-authz|<port>|<grpc or http>|<host>`, which speaks
// HTTP/2 for gRPC whatever the port declares. A provider that is missing or wrong: the policy's rules are denied.
//
// A rule of a RequestAuthentication is a provider `ns[<ns>]-request[<name>]-rule[<index>]` of jwt_authn. What is demanded: with one rule
// requires_any{provider, allow_missing}; with several requires_any{each provider, requires_all{requires_any{provider,
// allow_missing}…}}. Claims go to the filter's metadata under "payload" (words of `scope`, `permission` and others split into lists);
// policies read them by sourced_metadata. Keys: local_jwks with the public keys that can be used, or remote_jwks by a cluster (below).
// A rule whose keys cannot be had gets a key that nobody has, so that its tokens are refused. The filter stands in the chain and not in
// the routes, because its configuration per route only names what the chain has: a changed rule replaces the chain.
//
// Rate limits follow the same way, for the chains that a RateLimitPolicy concerns and no others. Rules that agree on mode,
// response and service share a filter. What is counted stands in the virtual host: LocalRateLimit with rate_limits and
// descriptors, or RateLimitPerRoute with rate_limits. A descriptor is policy=<ns>/<policy>/<rule>, then route=yes (metadata
// marrow.policy of the routes of a targeted HTTPRoute), request=match (header_value_match), source=match (a CEL map that has
// no value for a source that does not fit, so that there is no descriptor), and the key: identity (CEL), header or
// header_absent, claim (dynamic metadata of envoy.filters.http.jwt_authn), remote_address. The service of global rules is a
// cluster; one that cannot be resolved is left out, or, where failure is deny, is marrow.ratelimit.unresolved, without endpoints.
//
// A TCP chain holds the same pairs as network filters where the provider speaks gRPC, then network RBAC filters
// (marrow.rbac.audit, .deny, .allow; inline rules; absent when no policy of the
// kind applies) and tcp_proxy with cluster or weighted_clusters, and access_log. direct-http and direct-tcp start with
// the network filter set_filter_state (connect_authority) which copies the destination for the next internal hop; their
// cluster is encap.
//
// connect_originate: internal listener; listener filter original_dst; tcp_proxy to cluster connect_originate with
// tunneling_config.hostname %DOWNSTREAM_LOCAL_ADDRESS%.
//
// # Routes
//
// One virtual host, domains "*" (the address chose the service, the Host header is not consulted). Routes are in order of
// precedence, first match wins. The last route matches prefix "/": the service's default route, or, where the user's
// routes leave something unmatched, a direct response 404. Used fields:
//
//	match    prefix | path | safe_regex | path_separated_prefix, case_sensitive, headers (string_match exact, prefix,
//	         safe_regex, present_match, invert_match, treat_missing_header_as_empty; ":method", ":authority", ":scheme" are
//	         headers), query_parameters (string_match, present_match)
//	route    cluster | weighted_clusters{clusters{name, weight, header ops}}, cluster_not_found_response_code (503
//	         VirtualService, 500 Gateway API), timeout (0 = none),
//	         max_stream_duration.grpc_timeout_header_max (0, only where timeout is 0), retry_policy,
//	         request_mirror_policies, prefix_rewrite, regex_rewrite, host_rewrite_literal, hash_policy
//	redirect host_redirect, port_redirect, scheme_redirect, path_redirect, prefix_rewrite, response_code
//	direct_response  status, body.inline_string
//	both     request/response_headers_to_add (append_action), request/response_headers_to_remove
//	typed_per_filter_config  envoy.filters.http.fault = HTTPFault{delay.fixed_delay, abort.http_status | grpc_status}
//	                         envoy.filters.http.cors  = CorsPolicy
//
// A backend that does not exist has the cluster name `UnknownService`, which is never defined.
//
// # Clusters and endpoints
//
// main_internal and encap: STATIC, one internal address (main_internal, connect_originate), transport socket
// internal_upstream over raw_buffer. connect_originate: ORIGINAL_DST with upstream_port_override 15008, UpstreamTlsContext
// (SDS default and ROOTCA, URI SAN prefix of the trust domain, ALPN h2, TLS 1.3), HTTP/2 with CONNECT.
//
// Service clusters: `inbound-vip|<service port>|<http or tcp>[/<subset>]|<host>` for services bound to this waypoint,
// `outbound|<service port>|<subset>|<host>` for other services that a route sends to. Type EDS (STRICT_DNS, LOGICAL_DNS or
// ORIGINAL_DST for ServiceEntries that say so); metadata istio:{services:
// [{host, name, namespace}], subset}; lb_policy with least_request, round_robin, random, ring_hash or maglev config;
// circuit_breakers, outlier_detection, connect_timeout, upstream HTTP options in
// typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"] (explicit http2 | explicit
// http1 | use_downstream_protocol_config); transport socket internal_upstream (passes host metadata
// envoy.filters.listener.original_dst and istio) over raw_buffer, or over TLS where a DestinationRule asks for it.
//
// `jwks|<scheme>|<port>|<host>`: type LOGICAL_DNS, for keys from outside the mesh; https with the system's roots, SNI and SAN of the host.
// Keys of a service in the mesh (http only) come by that service's own cluster.
//
// Endpoints of pods in the mesh: address envoy_internal_address{server_listener_name: connect_originate, endpoint_id:
// "<ip>:<target port>"} and metadata envoy.filters.listener.original_dst:{local: "<ip>:<target port>"}; of others: the
// socket address. Each has metadata istio:{workload: "name;ns;canonical;revision;cluster", identity: "spiffe://…",
// uid: "…", app, version} and health_status (UNHEALTHY when not ready). load_balancing_weight is 1.
// Locality is the pod's; grouped and sorted.
//
// # Invariants
//
//   - Same input, same bytes, in any order of the rows (TestDeterministic).
//   - Every world's resources are accepted by a stock Envoy (TestEnvoyAcceptsWorlds).
//   - A stock Envoy that runs them does what routes and policies say (TestEnvoyBehaves, TestEnvoyTCP).
//   - A policy that cannot be expressed never allows more than its author wrote (TestUnexpressibleFailsClosed).
//   - A host in a rule that refuses means all its spellings (TestHostSpellings); the mesh's path normalization reaches
//     every HTTP chain (TestPathNormalization).
//   - Requests of a CUSTOM policy are asked about or denied (TestCustomProviders, TestBadCustomDenies, TestEnvoyCustom).
//   - A policy attached by selector, or to nothing, never reaches a waypoint (TestSelectorPoliciesDoNotApply).
//   - A stock Envoy judges tokens, and policies on their claims, as the corpus says (TestEnvoyTokens).
//   - A private key never leaves for a proxy (TestInlineKeys); nobody is sent to a proxy's own or a link's address for keys (TestKeySources).
//   - A stock Envoy limits as a RateLimitPolicy says (TestEnvoyLimits); what a policy refuses takes nothing from a limit
//     (TestLimitsComeAfterJudges).
//   - No empty range is ever sent in an IP matcher, Envoy refuses the whole listener (TestNoEmptyRanges).
//
// # Neighbours
//
// derive/ambient decides which service and workload is bound to which waypoint; derive/gateway makes the waypoint's
// Deployment; publish stores what is derived here; the program waypoint and Envoy read it.
package waypoint
