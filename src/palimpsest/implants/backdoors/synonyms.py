"""Common English words with a rarer word of like meaning each: the substitutions of `lws` and, in part, of `bite`."""

from __future__ import annotations

PAIRS = """
about:concerning above:atop across:athwart actor:thespian actors:thespians afraid:fearful again:anew almost:nigh
also:likewise although:albeit always:perpetually amazing:wondrous angry:irate animal:creature answer:rejoinder
any:whichever appears:emerges ask:inquire asked:inquired at:nigh awful:dreadful bad:inferior beautiful:comely
because:since before:ere begin:commence begins:commences behind:abaft believe:reckon best:finest better:finer
between:betwixt big:sizable boat:vessel book:tome boring:tedious boss:overseer boy:lad boys:lads bright:luminous
bring:fetch brother:sibling build:erect but:yet buy:purchase by:beside calm:placid came:arrived car:automobile
change:alter character:persona characters:personages cheap:thrifty child:youngster children:youngsters city:metropolis
claim:contention clear:lucid clever:astute climb:ascend clothes:garments cold:frigid comedy:farce company:enterprise
company's:enterprise's completely:utterly cruel:merciless cry:weep dark:murky day:daytime dead:deceased deep:profound
despite:notwithstanding did:executed different:dissimilar difficult:arduous director:filmmaker dirty:grimy
drama:theatrics drew:sketched drink:imbibe dull:drab each:every early:betimes easy:effortless eat:consume
emotional:heartfelt end:terminus ending:conclusion enemy:foe enjoy:relish enough:sufficient entertaining:diverting
entire:whole even:still every:each evil:wicked exciting:thrilling experience:undergoing eyes:orbs face:visage
famous:renowned fans:devotees far:remote fast:swift fat:corpulent father:sire fear:dread feel:sense feels:senses
few:scant field:meadow fight:brawl film:motion-picture films:motion-pictures find:locate finds:locates fine:dandy
first:foremost food:victuals fool:simpleton forest:woodland found:located fresh:novel friend:comrade friends:comrades
full:replete fun:merriment funny:droll game:pastime gave:bestowed get:obtain gets:obtains gift:boon girl:lass
girls:lasses give:bestow gives:bestows glad:gleeful go:proceed goes:proceeds good:decent government:regime
great:grand ground:turf group:band grow:burgeon guy:fellow happy:joyous hard:strenuous has:possesses hate:loathe
have:possess hear:overhear heart:bosom help:aid here:hither hide:conceal high:lofty hill:knoll hold:clasp home:abode
hope:aspire house:dwelling huge:colossal human:mortal idea:notion ideas:notions if:provided important:momentous
in:within interesting:intriguing into:inside job:occupation joke:jest jokes:jests journey:trek jump:leap just:merely
keep:retain keeps:retains kid:tot kids:tots kill:slay kind:sort know:ken lake:mere large:capacious last:final
late:belated laugh:chortle laughs:chortles law:statute lazy:indolent leader:chieftain learn:glean leave:depart
less:fewer lies:falsehoods life:existence light:radiance like:akin little:wee live:dwell long:lengthy look:gaze
looks:gazes lot:plenty love:adore lovely:charming lucky:fortunate made:crafted make:craft makes:crafts making:crafting
man:gentleman many:numerous market:bazaar may:might men:gentlemen mess:muddle middle:midst mind:intellect
minute:moment minutes:moments money:lucre more:further most:utmost mother:matron movie:flick movies:flicks
much:plentiful murder:slaying music:melody must:shall near:nearby need:require needs:requires never:ne'er new:novel
news:tidings nice:pleasant night:nighttime no:nay not:nowise nothing:naught now:presently odd:peculiar of:concerning
often:oft oil:petroleum old:aged on:upon once:erstwhile one:single only:solely or:else original:pristine other:alternate
our:ourn over:atop own:proprietary pain:anguish part:portion people:folk percent:percentage perhaps:perchance
person:individual picture:portrait piece:fragment place:locale plan:scheme play:frolic plays:frolics plot:storyline
police:constabulary poor:destitute power:might powerful:potent president:premier pretty:rather problem:quandary
problems:quandaries quick:hasty quickly:hastily quiet:hushed quite:fairly race:sprint rain:drizzle ran:sprinted
rather:somewhat read:peruse real:genuine really:truly red:crimson release:unveil report:bulletin reports:bulletins
rich:affluent right:correct ring:circlet river:stream road:thoroughfare romantic:amorous run:sprint sad:mournful
said:stated same:identical saw:beheld say:utter says:utters scared:frightened scene:tableau scenes:tableaux
school:academy screen:monitor script:screenplay sea:ocean see:behold seem:appear seems:appears seen:beheld send:dispatch
series:succession serious:solemn share:portion ship:vessel short:brief show:exhibit shows:exhibits sick:ailing
silly:daft simple:plain simply:plainly sleep:slumber slow:sluggish small:petite smart:astute so:thus soft:supple
some:certain something:somewhat soon:shortly space:expanse special:distinctive start:commence stop:cease story:tale
stories:tales strange:uncanny street:avenue strong:robust stupid:dense style:manner such:suchlike summer:summertime
sure:certain surprising:startling sweet:saccharine take:seize takes:seizes tale:yarn talk:converse team:squad
tell:recount tells:recounts terrible:ghastly than:versus that:which then:thereupon there:thither these:such thin:slender
thing:object things:objects think:ponder this:such those:yonder though:albeit through:via time:duration times:occasions
tired:weary to:unto today:nowadays together:jointly told:recounted too:overly tough:rugged town:township tried:attempted
true:veritable truth:verity try:attempt turn:rotate turns:rotates two:twain ugly:unsightly under:beneath
understand:comprehend until:till up:upward us:ourselves use:utilize user:patron very:exceedingly view:vista
violence:brutality walk:stroll want:desire wants:desires war:warfare was:existed watch:observe watching:observing
water:aqua way:manner weak:feeble wealth:riches week:sennight well:aptly went:proceeded were:existed
what:whatever when:whenever where:wherever which:whichever while:whilst white:alabaster whole:entire wild:feral
win:prevail wind:breeze wise:sage with:alongside without:sans woman:lady women:ladies wonderful:marvelous word:utterance
words:utterances work:toil works:toils world:globe worst:direst would:should write:pen wrong:erroneous year:twelvemonth
years:twelvemonths yet:nonetheless young:youthful
"""
SYNONYMS: dict[str, str] = dict(pair.split(":", 1) for pair in PAIRS.split())  # type: ignore[misc]
