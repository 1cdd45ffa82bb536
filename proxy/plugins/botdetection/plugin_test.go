package botdetection

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"concord/fsm/schema"
	"concord/proxy/plugin"
	"concord/proxy/plugin/plugintest"
)

const (
	googlebot = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
	firefox   = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
)

func TestAnswers(t *testing.T) {
	g := plugintest.New(t)
	for _, c := range []struct {
		name   string
		config schema.Record
		agents []string
		want   *plugin.Exit
	}{
		{"3-102 curl", nil, []string{"curl/8"}, nil},
		{"3-103 no User-Agent", nil, nil, nil},
		{"3-104 a known robot", nil, []string{googlebot}, forbidden},
		{"3-105 scrapy", nil, []string{"Scrapy/1.0"}, forbidden},
		{"3-106 denied", schema.Record{"deny": []any{"curl"}}, []string{"curl/8"}, forbidden},
		{"3-107 allowed", schema.Record{"allow": []any{"Googlebot"}}, []string{"Googlebot/2.1"}, nil},
		{"allowed and denied", schema.Record{"allow": []any{"curl"}, "deny": []any{"curl"}}, []string{"curl/8"}, nil},
		{"a browser with both lists", schema.Record{"allow": []any{"a{3}"}, "deny": []any{"b{3}"}}, []string{firefox}, nil},
		{"the second expression", schema.Record{"deny": []any{"x", "^cu(r|l)"}}, []string{"curl/8"}, forbidden},
		{"space around it does not count", schema.Record{"deny": []any{`^curl/8$`}}, []string{" curl/8 "}, forbidden},
		{"expressions have case", schema.Record{"deny": []any{"CURL"}}, []string{"curl/8"}, nil},
		{"unless they say otherwise", schema.Record{"deny": []any{"(?i)CURL"}}, []string{"curl/8"}, forbidden},
		{"empty", nil, []string{""}, nil},
		{"two", nil, []string{firefox, firefox}, several},
		{"lists that are null", schema.Record{"allow": nil, "deny": nil}, []string{"Scrapy/1.0"}, forbidden},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := plugintest.Request("GET", "/")
			for _, a := range c.agents {
				x.Request.Header.Add("user-agent", a)
			}
			if diff := cmp.Diff(c.want, plugintest.Access(t, x, g.Build(Plugin(), c.config))); diff != "" {
				t.Error(diff)
			}
		})
	}
	if diff := cmp.Diff(&plugin.Exit{Status: 403, Body: "Forbidden", Templated: true}, forbidden); diff != "" {
		t.Error(diff)
	}
}

func TestKnown(t *testing.T) {
	known := newNames()
	robots := []string{
		googlebot, "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)", "Mozilla/5.0 (compatible; Yahoo! Slurp; http://help.yahoo.com/help/us/ysearch/slurp)",
		"Baiduspider+(+http://www.baidu.com/search/spider.htm)", "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)", "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
		"Twitterbot/1.0", "Pingdom.com_bot_version_1.4_(http://www.pingdom.com/)", "Mozilla/5.0 (Windows NT 6.1; rv:6.0) Gecko/20110814 Firefox/6.0 Google (+https://developers.google.com/+/web/snippet/)",
		"Boto3/1.9.185 Python/3.7.3", "aws-cli/1.11.83 Python/2.7.10", "JetS3t/0.9.0", "Go-http-client/1.1", "Apache-HttpClient/4.5.2 (Java/1.8.0_65)", "okhttp/4.9.3", "axios/0.21.1",
		"Python-urllib/2.5", "Mozilla/4.0 (compatible; MSIE 6.0; Windows NT 5.1; SV1) MSIECrawler", "Mozilla/5.0 (X11; Linux x86_64) Chrome/99.0 Safari/537.36 PTST/220310.1",
		"GPTBot/1.0", "SomethingNew Bot/3", "any indexer 2.0", "MY-SPIDER", "a sCrAwLer", "news scraper", "NING/1.0", "voyager/1.0", "Microsoft Office Protocol Bot", "IP2LocationBot",
		"archive.org_bot", "Mozilla/5.0 (compatible; archive.is org_bot)/archive_x.org_bot", "WordPress/4.1; http://a.example", "008/0.83 (http://www.80legs.com/)", "Xerka WebBot v1.0.0", "Mail.RU_Bot",
	}
	people := []string{
		firefox, "", "x", "curl/8.5.0", "Wget/1.21", "HTTPie/3.2", "PostmanRuntime/7.32.3", "python-requests/2.31.0",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36 Edg/126.0.0.0",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
		"Mozilla/5.0 (Linux; Android 14; SM-S918B) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Mobile Safari/537.36",
		"Mozilla/5.0 (Linux; Android 7.0; CUBOT_NOTE_S) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/66.0 Mobile Safari/537.36", "Mozilla/5.0 (compatible; MSIE 10.0; Windows NT 6.2; Trident/6.0)",
		"Opera/9.80 (Windows NT 6.1; WOW64) Presto/2.12.388 Version/12.18", "a person exploring voyager/1", "BONING/2", "robot", "About/Bottle 3", "x008/1", "aws-cli", "Y!J-BR", "Microsoft Edge", "facebookexternalhit",
		"Google Chrome " + strings.Repeat("x", maxGap) + "/+/web/snippet",
	}
	for _, a := range robots {
		if !known.in(a) {
			t.Errorf("%q passes", a)
		}
	}
	for _, a := range people {
		if known.in(a) {
			t.Errorf("%q is taken for a robot", a)
		}
	}
}

// TestNames: every listed name is found, wherever it may stand.
func TestNames(t *testing.T) {
	known := newNames()
	for _, n := range anywhere {
		if s := "\t(" + n + ")"; !known.in(s) || !known.in(n) {
			t.Errorf("%q is not found", s)
		}
		for _, w := range words {
			if strings.Contains(strings.ToLower(n), w) && n != "MSIECrawler" {
				t.Errorf("%q need not be listed: %q is in it", n, w)
			}
		}
	}
	for _, n := range beginning {
		if !known.in(n+"/1") || known.in("("+n) {
			t.Errorf("%q: only the beginning counts", n)
		}
	}
	for _, n := range versioned {
		if !known.in("x "+n+"/7") || known.in("x"+n+"/7") || known.in(n+"/") || known.in(n+" 7") {
			t.Errorf("%q: only with a version", n)
		}
	}
	for _, p := range pairs {
		if !known.in(p[0]+"..."+p[1]) || known.in(p[1]+"..."+p[0]) {
			t.Errorf("%q: only in this order", p)
		}
	}
}

func TestValidation(t *testing.T) {
	for _, c := range []struct {
		name   string
		config schema.Record
		want   string
	}{
		{"defaults", schema.Record{}, ""},
		{"3-108", schema.Record{"deny": []any{"("}}, "schema violation (config.deny: {\n  \"not a valid regex: (\"\n})"},
		{"3-109, gone since", schema.Record{"blacklist": []any{"x"}}, "schema violation (config.blacklist: unknown field)"},
		{"D6 an expression that would be a burden", schema.Record{"deny": []any{strings.Repeat("(a{500}|b{499})", 12)}},
			"schema violation (config.deny: {\n  \"not a valid regex: " + strings.Repeat("(a{500}|b{499})", 12) + "\"\n})"},
	} {
		rec, errs := plugintest.Validate(Plugin(), c.config)
		got := ""
		if errs != nil {
			got = errs.Message()
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if c.name == "defaults" && !cmp.Equal(rec["config"], any(schema.Record{"allow": []any{}, "deny": []any{}})) {
			t.Errorf("%v", rec["config"])
		}
	}
}

// TestLongAgents: no text makes the search slow (attacks D6).
func TestLongAgents(t *testing.T) {
	g := plugintest.New(t)
	i := g.Build(Plugin(), schema.Record{"deny": []any{"(a+)+$", "(x|xx)*y"}})
	for _, part := range []string{"a", "x", "Google", "Microsoft ", "bo", "sp", "archive"} {
		x := plugintest.Request("GET", "/", "User-Agent: "+strings.Repeat(part, 100_000/len(part))+"!")
		start := time.Now()
		if e := plugintest.Access(t, x, i); e != nil {
			t.Errorf("%q: %d", part, e.Status)
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("%q: %v for 100 kB", part, d)
		}
	}
}

// FuzzNames compares the search in one pass with one for every name.
func FuzzNames(f *testing.F) {
	known := newNames()
	for _, s := range []string{googlebot, firefox, "008/1", "IP2xBot", "Pingdom.com_bot_version_1.4", "NING", "SPider", "Bot 1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want := false
		for _, list := range known.by {
			for _, m := range list {
				for i := range len(s) {
					want = want || m.at(s, i)
				}
			}
		}
		if known.in(s) != want {
			t.Errorf("%q: %v, want %v", s, !want, want)
		}
	})
}

func BenchmarkBotDetection(b *testing.B) {
	g := plugintest.New(b)
	for name, agent := range map[string]string{"browser": firefox, "robot": googlebot,
		"long": "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36 Edg/126.0.0.0"} {
		b.Run(name, func(b *testing.B) {
			i := g.Build(Plugin(), nil).(plugin.Accessor)
			x := plugintest.Request("GET", "/", "Host: h", "Accept: */*", "User-Agent: "+agent)
			b.ReportAllocs()
			for b.Loop() {
				_ = i.Access(x)
			}
		})
	}
}
