package botdetection

import "strings"

// What is known of the names of robots and of programs that fetch for others. The names are facts about software, as the
// ua-parser project (uap-core, Apache-2.0) has gathered them; letters have case.

// anywhere gives a robot away wherever it stands. Names with "spider", "crawl" or "scrape" in them are not listed: see words.
var anywhere = []string{
	// Search engines, archives, feeds.
	"50.nu", "Aboundex", "AdsBot-Google", "AppEngine-Google", "Ask Jeeves", "Axtaris", "BUbiNG", "BingPreview", "BlogBridge", "Bloglovin",
	"BoardReader Blog Indexer", "BoardReader Favicon Fetcher", "BotName/$BotVersion", "BotSeer", "Daumoa", "Feed Seeker Bot", "Feedbin", "Finderbots", "Flamingo_SearchEngine",
	"FollowSite Bot", "Genieo", "Google SketchUp", "Googlebot", "HiddenMarket", "HooWWWer", "Icarus6j", "IconSurf", "IlTrovatore", "InfuzApp",
	"InternetArchive", "Isara", "Job Roboter", "KaloogaBot", "Kraken", "Kurzor", "LEIA", "LesnikBot", "Linguee Bot", "LinkAider", "LinkedInBot",
	"Lite Bot", "Llaut", "MJ12bot", "Mail.RU_Bot", "Mediapartners-Google", "Mtps Feed Aggregation System", "Netvibes", "NewsGator", "Nutch",
	"Nymesis", "OOZBOT", "ObjectsSearch", "OgScrper", "Orbiter", "PagePeeker", "PagesInventory", "PaxleFramework", "Peeplo Screenshot Bot",
	"PlantyNet_WebRobot", "Pompos", "Qwantify", "Read%20Later", "Reaper", "RedCarpet", "Retreiver", "Riddler", "Rival IQ", "SEOstats", "Scrapy",
	"Scrubby", "SemrushBot", "ShopSalad", "SimplePie", "SimpleRSS", "Simpy", "SiteCat Webbot", "SiteCon", "Slack-ImgProxy",
	"Slackbot-LinkExpanding", "Slurp", "Squrl Java", "Stringer", "Tailsweep", "TheUsefulbot", "ThumbShotsBot", "Thumbshots.ru", "Tiny Tiny RSS",
	"Twitterbot", "URL2PNG", "Vagabondo", "VoilaBot", "Votay bot", "WASALive", "WIRE", "WeSEE:", "Web-sniffer", "WebThumb", "WhatWeb", "WhatsApp",
	"WordPress", "Wotbox", "Xenu Link Sleuth", "Xenu's Link Sleuth", "YahooSeeker", "Yandex", "Yeti", "YodaoBot", "YottaaMonitor", "Yowedo",
	"ZeBot_www.ze.bz", "ZooShot", "ZyBorg", "altavista", "archiver", "bingbot", "blitzbot", "boitho.com-dc", "clumboot", "favicon", "fetchurl",
	"findlinks", "furlbot", "gigabot", "gonzo1", "grub-client", "heritrix", "holmes", "htdig", "ia_archiver", "ichiro", "jbot", "larbin", "lycos",
	"masidani_bot", "masscan", "mogimogi", "mozDex", "msnbot", "msrbot", "netresearch", "scooter", "searchsight", "seekbot", "semanticdiscovery",
	"snappy", "www.almaden.ibm.com", "yacy",
	// Monitors.
	"Catchpoint", "Charlotte", "Checklinks", "GomezAgent", "HttpMonitor", "MSIECrawler", "TLSProber", "charlotte",
	// HTTP libraries.
	"Apache-HttpClient", "Go-http-client", "Google-HTTP-Java-Client", "JNLP", "Python-urllib", "WinHTTP", "aihttp", "axios", "http%20client",
	"okhttp", "reqwest", "scalaj-http", "unirest-java", "unirest-net", "unirest-nodejs", "unirest-php", "unirest-python", "unirest-ruby",
}

// beginning gives a robot away as the first thing that is said.
var beginning = []string{"NING", "Zao", "vortex", "voyager"}

// versioned gives a robot away when it is a word of its own and "/" and a digit follow.
var versioned = []string{
	"008", "Altresium", "Argus", "BaiduMobaider", "BoardReader", "DNSGroup", "DataparkSearch", "EDI", "Goodzer", "Grub", "INGRID", "Infohelfer", "LOOQ",
	"PathDefender", "Peew", "PostPost", "Steeler", "VSE", "WebCrunch", "WebZIP", "Y!J-BRI", "Y!J-BRJ", "Y!J-BRO", "Y!J-BRW", "envolk", "sproose", "wminer",
	"facebookexternalhit", "PTST",
	"Boto", "Boto3", "JetS3t", "s3fs", "aws-cli", "aws-sdk-cpp", "aws-sdk-go", "aws-sdk-java", "aws-sdk-nodejs", "aws-sdk-ruby", "aws-sdk-ruby2",
	"aws-sdk-dotnet-core", "aws-sdk-dotnet-35", "aws-sdk-dotnet-45",
}

// pairs give a robot away when the second stands within maxGap bytes behind the first.
var pairs = [][2]string{
	{"Accoona-", "-Agent"}, {"Google", "/+/web/snippet"}, {"IP2", "Bot"}, {"Microsoft ", " Bot"}, {"Pingdom.com_bot_version_", "."},
	{"Xerka ", "Bot"}, {"archive", ".org_bot"},
}

// maxGap keeps the search linear: a text may repeat the first of a pair without end.
const maxGap = 64

// words are what robots of any name call themselves, in any case.
var words = []string{"spider", "crawl"}

// callings are what they call themselves, if a version follows: "/" or a space and a digit. "scrape" needs none.
var callings = []string{"Archiver", "Indexer", "Bot", "archiver", "bot", "indexer"}

// where says when a name counts.
type where uint8

const (
	whereAnywhere where = iota
	whereBeginning
	whereVersioned
	whereCalling
	wherePair
	whereWord
)

type name struct {
	text  string
	then  string // of a pair
	where where
}

// names finds names in a text in one pass: the three bytes at most places tell that none begins there.
type names struct {
	starts [1 << 16 / 64]uint64 // hashes of the three bytes that names begin with
	by     map[uint32][]name    // the names that begin with them
}

// start is the three bytes that begin at s[i], and where they are in names.starts.
func start(s string, i int) (key, hash uint32) {
	key = uint32(s[i])<<16 | uint32(s[i+1])<<8 | uint32(s[i+2])
	return key, key * 0x9E3779B1 >> 16
}

func newNames() *names {
	n := &names{by: map[uint32][]name{}}
	for _, t := range anywhere {
		n.add(name{text: t})
	}
	for _, t := range [...]string{"scrape", "Scrape"} {
		n.add(name{text: t})
	}
	for _, t := range beginning {
		n.add(name{text: t, where: whereBeginning})
	}
	for _, t := range versioned {
		n.add(name{text: t, where: whereVersioned})
	}
	for _, t := range callings {
		n.add(name{text: t, where: whereCalling})
	}
	for _, p := range pairs {
		n.add(name{text: p[0], then: p[1], where: wherePair})
	}
	for _, t := range words {
		for capitals := range 1 << 3 {
			b := []byte(t)
			for i := range 3 {
				if capitals>>i&1 != 0 {
					b[i] -= 'a' - 'A'
				}
			}
			n.add(name{text: string(b), where: whereWord})
		}
	}
	return n
}

func (n *names) add(m name) {
	key, hash := start(m.text, 0)
	n.starts[hash/64] |= 1 << (hash % 64)
	n.by[key] = append(n.by[key], m)
}

// in tells whether one of the names is in s.
func (n *names) in(s string) bool {
	for i := range len(s) - 2 {
		key, hash := start(s, i)
		if n.starts[hash/64]&(1<<(hash%64)) == 0 {
			continue
		}
		for _, m := range n.by[key] {
			if m.at(s, i) {
				return true
			}
		}
	}
	return false
}

// at tells whether the name stands at s[i] in the way in which it counts.
func (m *name) at(s string, i int) bool {
	rest := s[i:]
	if len(rest) < len(m.text) || rest[:len(m.text)] != m.text && (m.where != whereWord || !strings.EqualFold(rest[:len(m.text)], m.text)) {
		return false
	}
	rest = rest[len(m.text):]
	switch m.where {
	case whereBeginning:
		return i == 0
	case whereVersioned:
		return (i == 0 || !wordByte(s[i-1])) && len(rest) > 1 && rest[0] == '/' && digit(rest[1])
	case whereCalling:
		return len(rest) > 1 && (rest[0] == '/' || rest[0] == ' ') && digit(rest[1])
	case wherePair:
		return strings.Contains(rest[:min(maxGap, len(rest))], m.then)
	}
	return true
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

func wordByte(c byte) bool {
	return digit(c) || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
}
