package phases_test

import (
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	globalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// TestRetryAfter: a refusal with 429 says when it is worth to ask again, where that is asked for and nobody else has said so.
func TestRetryAfter(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*localv3.LocalRateLimit)
		want   string
	}{
		"not asked for": {func(p *localv3.LocalRateLimit) { p.EnableRetryAfterHeader = false }, ""},
		"asked for":     {func(*localv3.LocalRateLimit) {}, "3600"},
		"another status": {func(p *localv3.LocalRateLimit) {
			p.Status = &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable}
		}, ""},
		"said already": {func(p *localv3.LocalRateLimit) {
			p.ResponseHeadersToAdd = []*corev3.HeaderValueOption{headerOption("retry-after", "7")}
		}, "7"},
	} {
		t.Run(name, func(t *testing.T) {
			p := perIdentity(t, 1)
			for _, d := range p.GetDescriptors() {
				d.TokenBucket = &typev3.TokenBucket{MaxTokens: 1, FillInterval: durationpb.New(time.Hour)}
			}
			p.EnableRetryAfterHeader = true
			tc.change(p)
			c := limiting(t, &localv3.LocalRateLimit{StatPrefix: "x"}, p).client(shopper, vip+":80", false)
			if resp, _ := do(t, c, "GET", "/"); resp.StatusCode != 200 || resp.Header.Get("Retry-After") != "" && tc.want != "7" {
				t.Errorf("within the limit: %d %q", resp.StatusCode, resp.Header.Get("Retry-After"))
			}
			if resp, _ := do(t, c, "GET", "/"); resp.StatusCode == 200 || resp.Header.Get("Retry-After") != tc.want {
				t.Errorf("over the limit: %d %q, want %q", resp.StatusCode, resp.Header.Get("Retry-After"), tc.want)
			}
		})
	}
	w, s := asking(t, func(p *globalv3.RateLimit) { p.EnableRetryAfterHeader = true })
	c := w.client(shopper, vip+":80", false)
	status := func(code rlsv3.RateLimitResponse_Code, wait time.Duration) *rlsv3.RateLimitResponse_DescriptorStatus {
		return &rlsv3.RateLimitResponse_DescriptorStatus{Code: code, DurationUntilReset: durationpb.New(wait)}
	}
	const over, ok = rlsv3.RateLimitResponse_OVER_LIMIT, rlsv3.RateLimitResponse_OK
	for name, tc := range map[string]struct {
		resp *rlsv3.RateLimitResponse
		want string
	}{
		"the longest that is over": {&rlsv3.RateLimitResponse{OverallCode: over, Statuses: []*rlsv3.RateLimitResponse_DescriptorStatus{
			status(over, 1500*time.Millisecond), status(over, time.Second), status(ok, time.Minute),
		}}, "2"},
		"at once":        {&rlsv3.RateLimitResponse{OverallCode: over, Statuses: []*rlsv3.RateLimitResponse_DescriptorStatus{status(over, 0)}}, "1"},
		"nobody is over": {&rlsv3.RateLimitResponse{OverallCode: over}, ""},
		"said already": {&rlsv3.RateLimitResponse{
			OverallCode: over, Statuses: []*rlsv3.RateLimitResponse_DescriptorStatus{status(over, time.Minute)},
			ResponseHeadersToAdd: []*corev3.HeaderValue{{Key: "retry-after", Value: "9"}},
		}, "9"},
	} {
		s.set(answer(tc.resp))
		if resp, _ := do(t, c, "GET", "/"); resp.StatusCode != 429 || resp.Header.Get("Retry-After") != tc.want {
			t.Errorf("%s: %d %q, want %q", name, resp.StatusCode, resp.Header.Get("Retry-After"), tc.want)
		}
	}
}
